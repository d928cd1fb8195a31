package compile

import (
	"maps"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Everywhere stands for the clients of all namespaces of which nothing particular is said.
const Everywhere = "*"

// Ruled reports whether something particular may be said of how clients of a namespace speak with hosts: it has DestinationRules, or some name it.
func Ruled(snap *registry.Snapshot, namespace string) bool {
	return nonempty(snap.DestinationRulesIn(namespace)) || nonempty(snap.DestinationRulesExportedTo(namespace))
}

// RuledFor are the namespaces of which something particular is said of how their clients speak with a service ("namespace/name"); in all others it is the same. With an
// external authorizer it is so in all: who asks is not to say how the one who decides is spoken with.
func RuledFor(snap *registry.Snapshot, set Settings, service string) map[string]bool {
	out := map[string]bool{}
	if set.Asks(service) {
		return out
	}
	for d := range snap.DestinationRulesFor(HostOf(service)) {
		out[d.Namespace] = true
		for _, ns := range d.ExportTo {
			if ns != "*" && ns != "." && ns != "~" {
				out[ns] = true
			}
		}
	}
	return out
}

// ruleOf finds the DestinationRule of a host for clients of a namespace: one of the clients' namespace, else one of that which the host is of, else one of the root
// namespace; in each, one that names the host, else that whose wildcard is the narrowest; of several, the oldest.
func ruleOf(snap *registry.Snapshot, set Settings, clients, owner, host string) *registry.DestinationRule {
	for _, ns := range []string{clients, owner, set.RootNamespace} {
		for name := host; name != ""; name = wider(name) {
			var found *registry.DestinationRule
			for d := range snap.DestinationRulesFor(name) {
				if d.Namespace == ns && exportedTo(d.ExportTo, d.Namespace, clients) && !slices.Contains(d.ExportTo, "~") && (found == nil || d.Created.Before(found.Created)) {
					found = d
				}
			}
			if found != nil {
				return found
			}
		}
	}
	return nil
}

// wider is the next wildcard that stands for a host, or nothing.
func wider(host string) string {
	_, parent, more := strings.Cut(strings.TrimPrefix(host, "*."), ".")
	if !more {
		return ""
	}
	return "*." + parent
}

// exportedTo reports whether what a list of namespaces says, of an object of one of them, holds for another. Nothing said is all.
func exportedTo(list []string, own, namespace string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, namespace) || namespace == own && slices.Contains(list, ".")
}

// PortFor compiles a port of a service as PortOf does, as clients of a namespace speak with it, or of all of which nothing particular is said (Everywhere).
func PortFor(snap *registry.Snapshot, set Settings, s *registry.Service, number uint32, f registry.Family, clients string) *ServicePort {
	p := PortOf(snap, set, s, number, f)
	if p != nil {
		p.obey(snap, set, ruleFor(snap, set, s, number, clients))
	}
	return p
}

// ruleFor is what a DestinationRule says of a port of a service; nil if nothing.
func ruleFor(snap *registry.Snapshot, set Settings, s *registry.Service, number uint32, clients string) *registry.ClientTLS {
	if set.Asks(s.ID) {
		clients = Everywhere
	}
	if rule := ruleOf(snap, set, clients, s.Namespace, Host(s)); rule != nil {
		return rule.For(number)
	}
	return nil
}

// obey makes of a port what a DestinationRule says of it. What cannot be enforced is obeyed by speaking with nobody.
func (p *ServicePort) obey(snap *registry.Snapshot, set Settings, t *registry.ClientTLS) {
	switch {
	case t == nil:
	case t.Broken:
		p.Mutual, p.Always, p.Identities = true, true, nil
	case t.Mode == registry.TLSDisable:
		p.Mutual = false
	case t.Mode == registry.TLSIstioMutual:
		p.Mutual, p.Always = true, true
		if len(t.SubjectAltNames) > 0 {
			p.Identities = standing(snap, set, t.SubjectAltNames)
		}
	case t.Secures() && set.Asks(p.Service.ID): // the cluster by which authorizers are asked has no other
		p.Mutual, p.Always, p.Identities = true, true, nil
	case t.Secures():
		p.TLS = t
	}
}

// Secured reports whether clients of a namespace have proxies that speak TLS with a Service's applications, at some of its ports.
func Secured(snap *registry.Snapshot, set Settings, s *registry.Service, clients string) bool {
	return slices.ContainsFunc(s.Ports, func(p registry.ServicePort) bool { return SecuredAt(snap, set, s, p.Number, clients) })
}

// SecuredAt reports it of one port.
func SecuredAt(snap *registry.Snapshot, set Settings, s *registry.Service, port uint32, clients string) bool {
	return nonempty(snap.DestinationRulesFor(Host(s))) && !set.Asks(s.ID) && ruleFor(snap, set, s, port, clients).Secures()
}

// standing are the names of identities under all trust domains of the mesh, without those that are revoked.
func standing(snap *registry.Snapshot, set Settings, identities []string) []string {
	names := map[string]bool{}
	for _, id := range identities {
		for _, uri := range set.Same(id) {
			if !set.revoked(snap, uri) {
				names[uri] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// FrontendFor returns the frontend of an address as FrontendAt does, as clients of a namespace reach it.
func FrontendFor(snap *registry.Snapshot, set Settings, at Address, clients string) *Frontend {
	f := FrontendAt(snap, set, at)
	if f == nil {
		return nil
	}
	t := ruleFor(snap, set, f.Service.Service, f.Service.Number, clients)
	f.Service.obey(snap, set, t)
	if f.Pod != nil && t != nil && (t.Broken || t.Mode != registry.TLSDisable) {
		f.Pod.Plain = false
	}
	return f
}
