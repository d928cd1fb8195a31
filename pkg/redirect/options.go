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
	if len(o.ExcludeInboundPorts) > maxEntries || len(o.ExcludeOutboundPorts) > maxEntries || len(o.ExcludeOutbound) > maxEntries {
		return Options{}, fmt.Errorf("options of redirection: a list has more than %d entries", maxEntries)
	}
	if slices.Contains(o.ExcludeInboundPorts, 0) || slices.Contains(o.ExcludeOutboundPorts, 0) {
		return Options{}, errors.New("options of redirection: 0 is no port")
	}
	if slices.ContainsFunc(o.ExcludeOutbound, func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4In6() }) {
		return Options{}, errors.New("options of redirection: an entry of excludeOutboundCIDRs is no network of IPv4 or IPv6")
	}
	return o, nil
}

// String is what Parse reads.
func (o Options) String() string {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // numbers and networks can always be written
	}
	return string(text)
}
