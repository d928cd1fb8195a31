package compile

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Address is an address and a port to which a client connects.
type Address struct {
	IP   string
	Port uint32
}

func (a Address) String() string { return fmt.Sprintf("%s_%d", a.IP, a.Port) }

// Frontend is one address and port at which clients reach a service port: the service's own address, or, behind a headless
// service, the address of one pod. The address that is called decides what a connection is, never what a request says of
// itself.
type Frontend struct {
	Address
	Service ServicePort
	// Pod is who answers at this address of a headless service. Nil: the service has an address of its own, and any of its
	// endpoints may answer.
	Pod *Endpoint
}

// Backend is the cluster behind the frontend. A pod of a headless service that takes no mutual TLS is reached as it is.
func (f *Frontend) Backend() string {
	if f.Pod != nil && f.Pod.Plain {
		return istiocompat.PassthroughCluster
	}
	return f.Service.Cluster()
}

// FrontendAt returns the frontend of an address, or nil: the address is nobody's in the mesh, and connections to it
// are passed on as they are, or refused if it is one of those that Services get (ServiceRanges). An address that several services claim is the oldest's.
func FrontendAt(snap *registry.Snapshot, set Settings, at Address) *Frontend {
	owner, number := ownerOf(snap, at)
	if owner == nil {
		return nil
	}
	if owner.Headless {
		return &Frontend{Address: at, Service: *PortOf(snap, set, owner, number, owner.Families()[0]), Pod: podEndpoint(snap, set, snap.PodAt(at.IP), at)}
	}
	return &Frontend{Address: at, Service: *PortOf(snap, set, owner, number, registry.FamilyOf(at.IP))}
}

// OwnerOf returns the service whose the frontend at an address is, or nil if there is none.
func OwnerOf(snap *registry.Snapshot, at Address) *registry.Service {
	owner, _ := ownerOf(snap, at)
	return owner
}

// ownerOf finds the service whose an address is, and the number of its port.
func ownerOf(snap *registry.Snapshot, at Address) (owner *registry.Service, number uint32) {
	consider := func(s *registry.Service, n uint32) {
		if owner == nil || cmp.Or(s.Created.Compare(owner.Created), cmp.Compare(s.ID, owner.ID), cmp.Compare(n, number)) < 0 {
			owner, number = s, n
		}
	}
	for s := range snap.ServicesAt(at.IP) {
		if s.HasPort(at.Port) {
			consider(s, at.Port)
		}
	}
	for s, n := range headlessPorts(snap, at) {
		consider(s, n)
	}
	return owner, number
}

// headlessPorts yields the headless services behind which the pod of an address stands, each with the number of its port
// that clients reach at the pod's port.
func headlessPorts(snap *registry.Snapshot, at Address) iter.Seq2[*registry.Service, uint32] {
	return func(yield func(*registry.Service, uint32) bool) {
		for slice := range snap.SlicesAt(at.IP) {
			s := snap.Service(slice.ServiceID)
			if s == nil || !s.Headless || !standsBehind(snap, s, at.IP) {
				continue
			}
			for _, p := range s.Ports {
				if slicePort(slice, p.Name) == at.Port && !yield(s, p.Number) {
					return
				}
			}
		}
	}
}

// standsBehind reports whether an address in a slice of a headless service is a pod of the service. Whoever may write slices
// can write any address into one; what is reached at addresses outside of the service's own pods is not theirs to say.
// An address that a pod shares with its node is not the pod's own, either.
func standsBehind(snap *registry.Snapshot, s *registry.Service, address string) bool {
	p := snap.PodAt(address)
	return p != nil && !p.HostNetwork && p.Namespace == s.Namespace && (len(s.Selector) == 0 || authz.Selects(s.Selector, p.Labels))
}

// podEndpoint is a pod as what is called directly, at one of its addresses, by its own facts.
func podEndpoint(snap *registry.Snapshot, set Settings, p *registry.Pod, at Address) *Endpoint {
	modes := ModesOf(snap, set, p.Namespace, p.Labels)
	return &Endpoint{Address: at.IP, Port: at.Port, Workload: LabelsOf(set, p), Plain: !p.Serves(at.Port) || modes.Mode(at.Port) == authz.Disable}
}

// Frontends lists where clients reach a service. At some of these addresses another service may be older.
func Frontends(snap *registry.Snapshot, s *registry.Service) []Address {
	var out []Address
	for _, ip := range s.ClusterIPs {
		for _, p := range s.Ports {
			out = append(out, Address{ip, p.Number})
		}
	}
	if !s.Headless {
		return out
	}
	for slice := range snap.SlicesOf(s.ID) {
		for _, a := range slice.Addresses {
			if standsBehind(snap, s, a) {
				out = append(out, headlessFrontends(s, slice, a)...)
			}
		}
	}
	return out
}

// headlessFrontends lists where clients reach an address in a slice of a headless service, if it is the service's.
func headlessFrontends(s *registry.Service, slice *registry.Slice, ip string) []Address {
	var out []Address
	for _, p := range s.Ports {
		if n := slicePort(slice, p.Name); n != 0 {
			out = append(out, Address{ip, n})
		}
	}
	return out
}

// IPv6 reports whether the cluster's Services have addresses of IPv6, by their ranges. Then its pods have some, too, and so their proxies listen in both families; elsewhere the
// nodes' kernels may have no IPv6, and a proxy whose configuration has an address of it would not take that.
func IPv6(ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// ServiceRanges are the ranges in which the addresses of the cluster's Services are.
func ServiceRanges(snap *registry.Snapshot) []netip.Prefix {
	var out []netip.Prefix
	for c := range snap.ServiceCIDRs() {
		out = append(out, c.Prefixes...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}
