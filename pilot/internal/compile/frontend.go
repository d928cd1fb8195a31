package compile

import (
	"cmp"
	"iter"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Frontend is one address and port at which clients reach a service port: the service's own address, or, behind a headless
// service, the address of one pod. The address that is called decides what a connection is, never what a request says of
// itself.
type Frontend struct {
	Address string
	Port    uint32
	Service ServicePort
	// Pod is who answers at this address of a headless service. Nil: the service has an address of its own, and any of its
	// endpoints may answer.
	Pod *Endpoint
}

// FrontendAt returns the frontend of an address and port, or nil: the address is nobody's in the mesh, and connections to it
// are passed on as they are. An address that several services claim is the oldest's.
func FrontendAt(snap *registry.Snapshot, set Settings, address string, port uint32) *Frontend {
	var owner *registry.Service
	var number uint32
	consider := func(s *registry.Service, n uint32) {
		if owner == nil || cmp.Or(s.Created.Compare(owner.Created), cmp.Compare(s.ID, owner.ID), cmp.Compare(n, number)) < 0 {
			owner, number = s, n
		}
	}
	for s := range snap.ServicesAt(address) {
		if slices.ContainsFunc(s.Ports, func(p registry.ServicePort) bool { return p.Number == port }) {
			consider(s, port)
		}
	}
	for s, n := range headlessPorts(snap, address, port) {
		consider(s, n)
	}
	if owner == nil {
		return nil
	}
	ports := ServicePorts(snap, set, owner)
	i := slices.IndexFunc(ports, func(p ServicePort) bool { return p.Number == number })
	f := &Frontend{Address: address, Port: port, Service: ports[i]}
	if owner.Headless {
		f.Pod = podEndpoint(snap, set, snap.PodAt(address), port)
	}
	return f
}

// headlessPorts yields the headless services behind which the pod of an address stands, each with the number of its port
// that clients reach at the pod's port.
func headlessPorts(snap *registry.Snapshot, address string, port uint32) iter.Seq2[*registry.Service, uint32] {
	return func(yield func(*registry.Service, uint32) bool) {
		for slice := range snap.SlicesAt(address) {
			s := snap.Service(slice.ServiceID)
			if s == nil || !s.Headless || !standsBehind(snap, s, address) {
				continue
			}
			for _, p := range s.Ports {
				if slicePort(slice, p.Name) == port && !yield(s, p.Number) {
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

// podEndpoint is a pod as what is called directly, by its own facts.
func podEndpoint(snap *registry.Snapshot, set Settings, p *registry.Pod, port uint32) *Endpoint {
	modes := authz.ComposePeer(peerPolicies(snap, set, p.Namespace), set.RootNamespace, p.Namespace, p.Labels)
	return &Endpoint{Address: p.IP, Port: port, Workload: LabelsOf(set, p), Plain: !p.Proxied || modes.Mode(port) == authz.Disable}
}

// Listeners names the outbound listeners of a service, one for each address and port at which it is reached.
func Listeners(snap *registry.Snapshot, s *registry.Service) []string {
	var out []string
	for _, ip := range s.ClusterIPs {
		for _, p := range s.Ports {
			out = append(out, ListenerName(ip, p.Number))
		}
	}
	if !s.Headless {
		return out
	}
	for slice := range snap.SlicesOf(s.ID) {
		for _, a := range slice.Addresses {
			if standsBehind(snap, s, a) {
				out = append(out, headlessListeners(s, slice, a)...)
			}
		}
	}
	return out
}

// headlessListeners names the listeners that an address in a slice of a headless service has, if it is the service's.
func headlessListeners(s *registry.Service, slice *registry.Slice, address string) []string {
	var out []string
	for _, p := range s.Ports {
		if n := slicePort(slice, p.Name); n != 0 {
			out = append(out, ListenerName(address, n))
		}
	}
	return out
}
