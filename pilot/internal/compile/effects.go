package compile

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Effects are the resources that a set of changes may touch, by name. What is not named here is not looked at again.
type Effects struct {
	Services  map[string]bool            // clusters of the services' ports ("namespace/name")
	Endpoints map[string]bool            // endpoints of the services' ports
	Listeners map[string]bool            // names of outbound listeners
	Routes    map[uint32]bool            // ports whose routes change, in every namespace
	Ports     map[string]map[uint32]bool // of the services, those they had and those they have
	Classes   []ClassSelector

	Revocations bool // the mesh's list of them

	former map[string]*registry.Service // as they were before the changes
}

// ClassSelector selects the classes whose inbound side may change. An empty namespace is every namespace.
type ClassSelector struct {
	Namespace string
	Labels    map[string]string
}

// Selects reports whether a class is selected.
func (s ClassSelector) Selects(c Class) bool {
	return (s.Namespace == "" || s.Namespace == c.Namespace) && authz.Selects(s.Labels, c.Labels)
}

// EffectsOf finds what depends on the changes that led to the snapshot.
func EffectsOf(snap *registry.Snapshot, set Settings, changes []registry.Change) Effects {
	e := Effects{
		Services: map[string]bool{}, Endpoints: map[string]bool{}, Listeners: map[string]bool{}, Routes: map[uint32]bool{},
		Ports: map[string]map[uint32]bool{}, former: map[string]*registry.Service{},
	}
	for _, c := range changes {
		if old, ok := c.Old.(*registry.Service); ok {
			e.former[c.ID] = old
		}
	}
	for _, c := range changes {
		switch c.Kind {
		case registry.Services:
			e.service(snap, c)
		case registry.Slices:
			e.slice(snap, c)
		case registry.Pods:
			e.pod(snap, c)
		case registry.Policies:
			each(c, func(p *registry.Policy) { e.class(set, p.Namespace, p.Selector) })
		case registry.JWTRules:
			each(c, func(p *registry.JWTRule) { e.class(set, p.Namespace, p.Selector) })
		case registry.PeerAuths:
			each(c, func(p *registry.PeerAuth) { e.peer(snap, set, p) })
		case registry.Revocations:
			e.Revocations = true
			each(c, func(r *registry.Revocation) { e.revocation(snap, r) })
		}
	}
	return e
}

// each calls f with what there was before and what there is now.
func each[T any](c registry.Change, f func(*T)) {
	if old, ok := c.Old.(*T); ok && old != nil {
		f(old)
	}
	if now, ok := c.New.(*T); ok && now != nil {
		f(now)
	}
}

func (e *Effects) class(set Settings, namespace string, selector map[string]string) {
	if namespace == set.RootNamespace {
		namespace = ""
	}
	e.Classes = append(e.Classes, ClassSelector{namespace, selector})
}

func (e *Effects) service(snap *registry.Snapshot, c registry.Change) {
	each(c, func(s *registry.Service) {
		e.Services[s.ID], e.Endpoints[s.ID] = true, true
		if e.Ports[s.ID] == nil {
			e.Ports[s.ID] = map[uint32]bool{}
		}
		for _, p := range s.Ports {
			e.Ports[s.ID][p.Number] = true // a port that went has its cluster removed
			if p.Protocol.IsHTTP() && !sameRoutes(c, p.Number) {
				e.Routes[p.Number] = true
			}
		}
		for _, l := range ListenersOf(snap, s) {
			e.Listeners[l] = true
		}
		if len(s.Selector) > 0 {
			e.Classes = append(e.Classes, ClassSelector{s.Namespace, s.Selector})
		}
	})
}

// sameRoutes reports whether a service is routed to on a port as it was before: by the same names and addresses.
func sameRoutes(c registry.Change, port uint32) bool {
	old, _ := c.Old.(*registry.Service)
	now, _ := c.New.(*registry.Service)
	number := strconv.Itoa(int(port))
	return old != nil && now != nil && old.Headless == now.Headless && slices.Equal(old.ClusterIPs, now.ClusterIPs) &&
		slices.Contains(old.HTTPPorts, number) && slices.Contains(now.HTTPPorts, number)
}

func (e *Effects) slice(snap *registry.Snapshot, c registry.Change) {
	each(c, func(sl *registry.Slice) {
		e.Endpoints[sl.ServiceID] = true
		for _, s := range []*registry.Service{snap.Service(sl.ServiceID), e.former[sl.ServiceID]} {
			if s == nil {
				continue
			}
			if len(s.Selector) == 0 || s.Headless {
				e.Services[s.ID] = true
			}
			if s.Headless {
				e.headless(s, sl.Addresses)
			}
		}
	})
}

func (e *Effects) headless(s *registry.Service, addresses []string) {
	for _, a := range addresses {
		for _, p := range s.Ports {
			if !p.Protocol.IsHTTP() {
				e.Listeners[ListenerName(a, p.Number)] = true
			}
		}
	}
}

func (e *Effects) pod(snap *registry.Snapshot, c registry.Change) {
	each(c, func(p *registry.Pod) {
		for s := range snap.ServicesIn(p.Namespace) {
			if len(s.Selector) > 0 && authz.Selects(s.Selector, p.Labels) {
				e.Services[s.ID], e.Endpoints[s.ID] = true, true
			}
		}
		if p.IP == "" {
			return
		}
		for sl := range snap.SlicesAt(p.IP) {
			e.Services[sl.ServiceID], e.Endpoints[sl.ServiceID] = true, true
		}
	})
}

// revocation: the clusters of the services that pods of the identity may serve no longer, or again.
func (e *Effects) revocation(snap *registry.Snapshot, r *registry.Revocation) {
	id, err := spiffe.Parse(r.Identity)
	if err != nil || r.Serial != "" {
		return
	}
	for p := range snap.PodsIn(id.Namespace) {
		if p.ServiceAccount != id.ServiceAccount {
			continue
		}
		for s := range snap.ServicesIn(p.Namespace) {
			if len(s.Selector) > 0 && authz.Selects(s.Selector, p.Labels) {
				e.Services[s.ID] = true
			}
		}
		if p.IP == "" {
			continue
		}
		for sl := range snap.SlicesAt(p.IP) {
			e.Services[sl.ServiceID] = true
		}
	}
}

func (e *Effects) peer(snap *registry.Snapshot, set Settings, p *registry.PeerAuth) {
	e.class(set, p.Namespace, p.Selector)
	if p.Namespace == set.RootNamespace {
		for s := range snap.Services() {
			e.Endpoints[s.ID] = true
		}
		return
	}
	for s := range snap.ServicesIn(p.Namespace) {
		e.Endpoints[s.ID] = true
	}
}

// ListenerName names an outbound listener; address 0.0.0.0 takes what no service's own address takes.
func ListenerName(address string, port uint32) string { return fmt.Sprintf("%s_%d", address, port) }

// AnyAddress is the address of the listeners that HTTP services share.
const AnyAddress = "0.0.0.0"

// ListenersOf names the outbound listeners that a service needs.
func ListenersOf(snap *registry.Snapshot, s *registry.Service) []string {
	var out []string
	for _, p := range s.Ports {
		if p.Protocol.IsHTTP() {
			out = append(out, ListenerName(AnyAddress, p.Number))
			continue
		}
		for _, ip := range s.ClusterIPs {
			out = append(out, ListenerName(ip, p.Number))
		}
		if s.Headless {
			for sl := range snap.SlicesOf(s.ID) {
				for _, a := range sl.Addresses {
					out = append(out, ListenerName(a, p.Number))
				}
			}
		}
	}
	return out
}
