package compile

import (
	"iter"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Effects are the resources that a set of changes may touch, by name. What is not named here is not looked at again.
type Effects struct {
	Services  map[string]bool            // clusters of the services' ports ("namespace/name")
	Endpoints map[string]bool            // endpoints of the services' ports
	Frontends map[Address]bool           // where clients reach services
	Ports     map[string]map[uint32]bool // of the services, those they had and those they have
	Reach     map[string]bool            // services that others than before may reach ("namespace/name")
	Classes   []ClassSelector

	Nodes       map[string]bool // that are in another zone than before
	Sidecars    []string        // namespaces whose workloads may know other services than before, or connect elsewhere; "" is every one
	Revocations bool            // the mesh's list of them
	Ranges      bool            // of Services' addresses
	Outside     map[string]bool // namespaces whose workloads may have another Outside; "" is every one

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
		Services: map[string]bool{}, Endpoints: map[string]bool{}, Frontends: map[Address]bool{},
		Ports: map[string]map[uint32]bool{}, Reach: map[string]bool{}, Nodes: map[string]bool{}, Outside: map[string]bool{}, former: map[string]*registry.Service{},
	}
	for _, c := range changes {
		if old, _ := registry.Services.Of(c); old != nil {
			e.former[c.ID] = old
		}
	}
	for _, c := range changes {
		registry.Services.Each(c, func(s *registry.Service) { e.service(snap, set, s) })
		registry.Slices.Each(c, func(s *registry.Slice) { e.slice(snap, set, s) })
		registry.Pods.Each(c, func(p *registry.Pod) { e.pod(snap, set, p) })
		registry.Nodes.Each(c, func(n *registry.Node) { e.Nodes[n.ID] = true })
		registry.Policies.Each(c, func(p *registry.Policy) { e.policy(snap, set, p) })
		registry.RequestAuths.Each(c, func(r *registry.RequestAuth) { e.class(set, r.Namespace, r.Selector) })
		registry.KeySets.Each(c, func(k *registry.KeySet) { e.keys(snap, set, k) })
		registry.PeerAuths.Each(c, func(p *registry.PeerAuth) { e.peer(snap, set, p) })
		registry.Sidecars.Each(c, func(s *registry.Sidecar) { e.sidecar(set, s) })
		registry.ServiceEntries.Each(c, func(s *registry.ServiceEntry) { e.outside(set, s.Namespace) })
		registry.DestinationRules.Each(c, func(d *registry.DestinationRule) { e.rule(snap, set, d) })
		registry.ServiceCIDRs.Each(c, func(*registry.ServiceCIDR) { e.ranges() })
		registry.Revocations.Each(c, func(r *registry.Revocation) { e.revocation(snap, r) })
	}
	return e
}

// ranges: of Services' addresses, which say in which families all proxies listen, too, and are nobody's outside.
func (e *Effects) ranges() {
	e.Ranges, e.Outside[""] = true, true
	e.Classes = append(e.Classes, ClassSelector{})
}

// keys: of those who verify tokens by them.
func (e *Effects) keys(snap *registry.Snapshot, set Settings, k *registry.KeySet) {
	for r := range snap.RequestAuthsBy(k.ID) {
		e.class(set, r.Namespace, r.Selector)
	}
}

func (e *Effects) class(set Settings, namespace string, selector map[string]string) {
	if namespace == set.RootNamespace {
		namespace = ""
	}
	e.Classes = append(e.Classes, ClassSelector{namespace, selector})
}

func (e *Effects) service(snap *registry.Snapshot, set Settings, s *registry.Service) {
	e.Services[s.ID], e.Endpoints[s.ID], e.Reach[s.ID] = true, true, true
	if e.Ports[s.ID] == nil {
		e.Ports[s.ID] = map[uint32]bool{}
	}
	for _, p := range s.Ports {
		e.Ports[s.ID][p.Number] = true // a port that went has its cluster removed
	}
	for _, l := range Frontends(snap, s) {
		e.Frontends[l] = true
	}
	e.claims(snap, set, s.ClusterIPs...)
	if len(s.Selector) > 0 {
		e.Classes = append(e.Classes, ClassSelector{s.Namespace, s.Selector})
	}
	if len(snap.Targeting(s.ID)) > 0 { // who is behind it has a policy that others of the same workloads are reached by, too
		for other := range snap.ServicesIn(s.Namespace) {
			e.Reach[other.ID] = true
		}
	}
}

func (e *Effects) slice(snap *registry.Snapshot, set Settings, sl *registry.Slice) {
	if sl.ServiceID == apiServer {
		e.claims(snap, set, sl.Addresses...)
	}
	e.Endpoints[sl.ServiceID] = true
	for _, s := range e.nowAndBefore(snap, sl.ServiceID) {
		if len(s.Selector) == 0 || s.Headless {
			e.Services[s.ID] = true
		}
		if len(s.Selector) == 0 {
			e.Reach[s.ID] = true
		}
		if s.Headless {
			e.headless(s, sl, sl.Addresses...)
		}
	}
}

// nowAndBefore returns a service as it is, and as it was if it has changed at the same time as something that it depends on:
// what was there of the old one is named by nothing else any more.
func (e *Effects) nowAndBefore(snap *registry.Snapshot, id string) []*registry.Service {
	var out []*registry.Service
	for _, s := range []*registry.Service{snap.Service(id), e.former[id]} {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// headless: addresses in a slice of a headless service, which may be reached otherwise, or not at all any more.
func (e *Effects) headless(s *registry.Service, slice *registry.Slice, addresses ...string) {
	for _, a := range addresses {
		for _, l := range headlessFrontends(s, slice, a) {
			e.Frontends[l] = true
		}
	}
}

func (e *Effects) pod(snap *registry.Snapshot, set Settings, p *registry.Pod) {
	e.claims(snap, set, p.IPs...)
	for _, s := range snap.ServicesFor(p.Namespace, p.Labels) {
		e.Services[s.ID], e.Endpoints[s.ID], e.Reach[s.ID] = true, true, true
	}
	for _, ip := range p.IPs {
		for sl := range snap.SlicesAt(ip) {
			e.Services[sl.ServiceID], e.Endpoints[sl.ServiceID], e.Reach[sl.ServiceID] = true, true, true
			for _, s := range e.nowAndBefore(snap, sl.ServiceID) {
				if s.Headless {
					e.headless(s, sl, ip)
				}
			}
		}
	}
}

// slicesOf are the slices that have an address of a pod's.
func slicesOf(snap *registry.Snapshot, p *registry.Pod) iter.Seq[*registry.Slice] {
	return func(yield func(*registry.Slice) bool) {
		for _, ip := range p.IPs {
			for sl := range snap.SlicesAt(ip) {
				if !yield(sl) {
					return
				}
			}
		}
	}
}

// policy: what holds for the classes that it selects, and who may reach the services that their pods stand behind, or would.
func (e *Effects) policy(snap *registry.Snapshot, set Settings, p *registry.Policy) {
	e.class(set, p.Namespace, p.Selector)
	if p.Action != authz.Allow {
		return
	}
	services, pods := snap.ServicesIn(p.Namespace), snap.PodsSelected(p.Namespace, p.Selector)
	if p.Namespace == set.RootNamespace {
		services, pods = snap.Services(), snap.Pods()
	}
	for s := range services {
		if len(s.Selector) > 0 && mayShare(p.Selector, s.Selector) {
			e.Reach[s.ID] = true
		}
	}
	for pod := range pods {
		if !authz.Selects(p.Selector, pod.Labels) {
			continue
		}
		for sl := range slicesOf(snap, pod) { // of services without a selector, which may be of any namespace
			e.Reach[sl.ServiceID] = true
		}
	}
}

func (e *Effects) sidecar(set Settings, s *registry.Sidecar) {
	namespace := s.Namespace
	if namespace == set.RootNamespace {
		namespace = ""
	}
	if !slices.Contains(e.Sidecars, namespace) {
		e.Sidecars = append(e.Sidecars, namespace)
	}
}

// Sidecared reports whether the workloads of a namespace may know other services than before, or connect elsewhere.
func (e Effects) Sidecared(namespace string) bool {
	return slices.Contains(e.Sidecars, namespace) || slices.Contains(e.Sidecars, "")
}

// mayShare reports whether a pod may have the labels of both selectors.
func mayShare(a, b map[string]string) bool {
	for k, v := range a {
		if other, ok := b[k]; ok && other != v {
			return false
		}
	}
	return true
}

// revocation: the list, and the clusters of the services that pods of the identity may serve no longer, or again.
func (e *Effects) revocation(snap *registry.Snapshot, r *registry.Revocation) {
	e.Revocations = true
	id, err := spiffe.Parse(r.Identity)
	if err != nil || r.Serial != "" {
		return
	}
	e.expected(snap)
	for p := range snap.PodsIn(id.Namespace) {
		if p.ServiceAccount != id.ServiceAccount {
			continue
		}
		for _, s := range snap.ServicesFor(p.Namespace, p.Labels) {
			e.Services[s.ID] = true
		}
		for sl := range slicesOf(snap, p) {
			e.Services[sl.ServiceID] = true
		}
	}
}

func (e *Effects) peer(snap *registry.Snapshot, set Settings, p *registry.PeerAuth) {
	e.class(set, p.Namespace, p.Selector)
	services := snap.ServicesIn(p.Namespace)
	if p.Namespace == set.RootNamespace {
		services = snap.Services()
	}
	for s := range services {
		e.Endpoints[s.ID] = true
		if s.Headless {
			for _, l := range Frontends(snap, s) {
				e.Frontends[l] = true
			}
		}
	}
}
