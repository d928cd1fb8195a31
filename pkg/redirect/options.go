package redirect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// Options say what is left alone, besides the proxy itself. Injection writes them, as JSON, for whoever applies the rules.
type Options struct {
	ExcludeInboundPorts  []uint16       `json:"excludeInboundPorts,omitempty"`
	ExcludeOutboundPorts []uint16       `json:"excludeOutboundPorts,omitempty"`
	ExcludeOutbound      []netip.Prefix `json:"excludeOutboundCIDRs,omitempty"`

	// What alone is redirected, where that is not everything: nil is everything, an empty list is nothing. IncludeOutboundPorts are redirected whatever their
	// address, beside what the networks say.
	IncludeInboundPorts  []uint16       `json:"includeInboundPorts,omitzero"`
	IncludeOutbound      []netip.Prefix `json:"includeOutboundCIDRs,omitzero"`
	IncludeOutboundPorts []uint16       `json:"includeOutboundPorts,omitempty"`
}

// Inbound reports whether connections to a port of the pod come to its proxy.
func (o Options) Inbound(port uint16) bool {
	if o.IncludeInboundPorts != nil {
		return slices.Contains(o.IncludeInboundPorts, port)
	}
	return !slices.Contains(o.ExcludeInboundPorts, port)
}

// The bounds keep a list that somebody else wrote from being more rules than the kernel takes in one transaction.
const (
	maxText    = 16 << 10
	maxEntries = 256
)

// Parse reads what String wrote, and refuses what it cannot have written: a word that is not understood may be one that
// was to leave something alone.
func Parse(text string) (Options, error) {
	if len(text) > maxText {
		return Options{}, fmt.Errorf("options of redirection have %d bytes; %d are read at most", len(text), maxText)
	}
	var o Options
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return Options{}, fmt.Errorf("options of redirection: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Options{}, errors.New("options of redirection: there is more than one JSON value")
	}
	return o, o.check()
}

func (o Options) check() error {
	for _, ports := range [][]uint16{o.ExcludeInboundPorts, o.ExcludeOutboundPorts, o.IncludeInboundPorts, o.IncludeOutboundPorts} {
		if len(ports) > maxEntries {
			return fmt.Errorf("options of redirection: a list has more than %d entries", maxEntries)
		}
		if slices.Contains(ports, 0) {
			return errors.New("options of redirection: 0 is no port")
		}
	}
	for _, networks := range [][]netip.Prefix{o.ExcludeOutbound, o.IncludeOutbound} {
		if len(networks) > maxEntries {
			return fmt.Errorf("options of redirection: a list has more than %d entries", maxEntries)
		}
		if slices.ContainsFunc(networks, func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4In6() }) {
			return errors.New("options of redirection: an entry of a list of CIDRs is no network of IPv4 or IPv6")
		}
	}
	return nil
}

// String is what Parse reads.
func (o Options) String() string {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // numbers and networks can always be written
	}
	return string(text)
}
