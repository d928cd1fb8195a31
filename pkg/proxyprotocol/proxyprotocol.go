// Package proxyprotocol reads who may say by the PROXY protocol for whom it connects, and at which ports of a pod.
package proxyprotocol

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what a pod's author, and the installation, may list.
const (
	MaxPorts    = 32
	MaxNetworks = 256
)

// Ports reads ports that commas separate, such as "8080, 8443". They are sorted, and each is there once. None is no error.
func Ports(list string) ([]uint32, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var out []uint32
	for port := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(port), 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no port of the pod; it may be a list of them, such as 8080,8443", port)
		}
		out = append(out, uint32(n))
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) > MaxPorts {
		return nil, fmt.Errorf("%d ports; it may have %d", len(out), MaxPorts)
	}
	return out, nil
}

// Networks reads the networks, or single addresses, of load balancers. One that holds every address is refused: it would have each client be believed.
func Networks(list []string) ([]netip.Prefix, error) {
	if len(list) > MaxNetworks {
		return nil, fmt.Errorf("%d networks; there may be %d", len(list), MaxNetworks)
	}
	var out []netip.Prefix
	for _, text := range list {
		network, err := netip.ParsePrefix(text)
		if address, e := netip.ParseAddr(text); e == nil && address.Zone() == "" {
			network, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		switch {
		case err != nil || network.Addr().Is4In6():
			return nil, fmt.Errorf("%q is neither a network, such as 10.0.0.0/24, nor an address", text)
		case network.Bits() == 0:
			return nil, fmt.Errorf("%q would have everybody be believed who sends a PROXY header; name the load balancers' own networks", text)
		default:
			out = append(out, network.Masked())
		}
	}
	return out, nil
}
