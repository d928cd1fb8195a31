package network

import (
	"fmt"
	"net/netip"
)

// Families are the versions of IP of which nodes, pods and Services have addresses.
type Families string

// What a cluster may have. Where it has both, IPv4 comes first.
const (
	IPv4 Families = "ipv4"
	Dual Families = "dual"
)

// ParseFamilies reads what a command line says; empty is IPv4.
func ParseFamilies(text string) (Families, error) {
	switch f := Families(text); f {
	case "":
		return IPv4, nil
	case IPv4, Dual:
		return f, nil
	}
	return "", fmt.Errorf("IP families %q: want %s or %s", text, IPv4, Dual)
}

// of returns the values of the families, in their order.
func of[T any](f Families, four, six T) []T {
	if f == Dual {
		return []T{four, six}
	}
	return []T{four}
}

// NodeIPs are the addresses of the nth node, counted from 1. Those of IPv6 are unique local addresses (RFC 4193) of the cluster's own namespaces.
func NodeIPs(f Families, n int) []netip.Addr {
	return of(f, netip.AddrFrom4([4]byte{10, 240, 0, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:10:240::%d", n)))
}

// PodRanges are the address ranges of the nth node's pods.
func PodRanges(f Families, n int) []netip.Prefix {
	return of(f, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 241, byte(n), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:10:241:%d::/64", n)))
}

// Gateways are the fabric's own addresses. They lead nowhere: what is sent beyond the cluster is answered "unreachable" at once.
func Gateways(f Families) []netip.Addr {
	return of(f, netip.MustParseAddr("10.240.0.254"), netip.MustParseAddr("fd00:10:240::fe"))
}

// ServiceRanges are the ranges of Services' addresses.
func ServiceRanges(f Families) []netip.Prefix {
	return of(f, netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"))
}

// AllPods are the ranges of all nodes' pods.
func AllPods(f Families) []netip.Prefix {
	return of(f, netip.MustParsePrefix("10.241.0.0/16"), netip.MustParsePrefix("fd00:10:241::/48"))
}

// Sysctls are the settings by which a network namespace forwards. Of two pods of one node, a reply crosses the bridge only; on a node it is seen all the same, or a
// Service's answer would come from the wrong address.
func Sysctls(f Families, node bool) map[string]string {
	out := map[string]string{"net/ipv4/ip_forward": "1"}
	if node {
		out["net/bridge/bridge-nf-call-iptables"] = "1"
	}
	if f == Dual {
		out["net/ipv6/conf/all/forwarding"] = "1"
		if node {
			out["net/bridge/bridge-nf-call-ip6tables"] = "1"
		}
	}
	return out
}
