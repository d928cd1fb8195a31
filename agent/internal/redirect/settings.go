package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// Settings of `agent redirect`.
type Settings struct {
	ExcludeInboundPorts  []string `mapstructure:"excludeInboundPorts" usage:"ports whose inbound traffic is not redirected"`
	ExcludeOutboundPorts []string `mapstructure:"excludeOutboundPorts" usage:"ports to which outbound traffic is not redirected"`
	ExcludeOutboundCIDRs []string `mapstructure:"excludeOutboundCIDRs" usage:"networks to which outbound traffic is not redirected"`
	Remove               bool     `mapstructure:"remove" usage:"take the rules out instead"`
}

// Validate implements config.Validator.
func (s Settings) Validate() error {
	_, err := s.options()
	return err
}

// Run applies the settings to the network namespace it runs in.
func Run(_ context.Context, s Settings) error {
	if s.Remove {
		return Remove()
	}
	o, err := s.options()
	if err != nil {
		return err
	}
	return Apply(o)
}

func (s Settings) options() (Options, error) {
	var o Options
	var errs []error
	ports := func(name string, texts []string) []uint16 {
		var out []uint16
		for _, text := range texts {
			p, err := strconv.ParseUint(text, 10, 16)
			if err != nil || p == 0 {
				errs = append(errs, fmt.Errorf("%s: %q is no port", name, text))
				continue
			}
			out = append(out, uint16(p))
		}
		return out
	}
	o.ExcludeInboundPorts = ports("excludeInboundPorts", s.ExcludeInboundPorts)
	o.ExcludeOutboundPorts = ports("excludeOutboundPorts", s.ExcludeOutboundPorts)
	for _, text := range s.ExcludeOutboundCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("excludeOutboundCIDRs: %w", err))
			continue
		}
		o.ExcludeOutbound = append(o.ExcludeOutbound, p)
	}
	return o, errors.Join(errs...)
}
