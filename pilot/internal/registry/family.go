package registry

import (
	"net/netip"

	netutils "k8s.io/utils/net"
)

// Family is a version of IP. A Service has at most one address of each, an EndpointSlice has addresses of one, and a pod one of each at most.
type Family uint8

// The families. What says nothing of its family is of IPv4, the older one.
const (
	IPv4 Family = iota
	IPv6
)

// String is how Kubernetes calls the family (core.IPFamily).
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf is the family of an address as it is in the registry.
func FamilyOf(address string) Family {
	if a, err := netip.ParseAddr(address); err == nil && a.Is6() {
		return IPv6
	}
	return IPv4
}

// canonical is an address in the one way in which it is written here (of IPv6 that of RFC 5952): Kubernetes stores some as they were sent, and addresses of
// different objects are compared as text. It is read as kube-proxy does, to whom an IPv4 address that is mapped into IPv6 is that of IPv4. What is no address
// stays as it is.
func canonical(address string) string {
	if ip := netutils.ParseIPSloppy(address); ip != nil {
		return ip.String()
	}
	return address
}
