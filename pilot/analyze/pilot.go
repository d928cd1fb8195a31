package analyze

import (
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// pilot is what Pilot itself says of objects: what of them it cannot enforce, and what it tells their authors.
func pilot(w *world, r *report) {
	for _, v := range registry.Verdicts(w.snap) {
		for _, p := range v.Problems {
			r.say(NotEnforceable, Object{v.Kind, v.Namespace, v.Name}, p.Field, "%s", p.Reason)
		}
	}
	for _, p := range w.policies {
		var said []string
		for _, a := range p.Warnings {
			said = append(said, a.Error())
			r.say(Advice, p.object, a.Field, "%s", a.Reason)
		}
		if p.Action == authz.Audit || !p.enforced() || !undeclaredPorts(p) {
			continue // the rest is about such ports
		}
		for _, text := range registry.Policies.Advice(p.Policy) {
			if !slices.Contains(said, text) {
				r.say(Advice, p.object, "", "%s", text)
			}
		}
	}
	for _, o := range w.objects {
		kind := registry.KindOfObject(o.GetKind())
		if !offline.Watched(o) || kind == registry.Policies || kind == registry.Revocations {
			continue
		}
		event, err := kind.Event(o, w.Options)
		if err != nil {
			continue // the snapshot would not have been made of it
		}
		if s, ok := event.Object.(*registry.Service); ok && !w.inMesh(s) {
			continue // what proxies do not take is what nothing takes
		}
		if d, ok := event.Object.(*registry.DestinationRule); ok && !registry.IsService(d.Host) && !d.Subsets {
			continue // whether something names its host is said where nothing does
		}
		for _, text := range kind.Advice(event.Object) {
			field, reason, found := strings.Cut(text, ": ")
			if !found || !strings.HasPrefix(field, "spec.") || strings.Contains(field, " ") {
				field, reason = "", text
			}
			if auth, ok := event.Object.(*registry.RequestAuth); ok && len(auth.Rules) > 0 && field == "" {
				continue // that nobody has to show a token is said where it is so
			}
			r.say(Advice, objectOf(o), field, "%s", reason)
		}
	}
}

// inMesh reports whether a Service has a pod with a proxy.
func (w *world) inMesh(s *registry.Service) bool {
	if len(s.Selector) == 0 {
		return true // who can tell
	}
	for p := range w.snap.PodsSelected(s.Namespace, s.Selector) {
		if p.Proxied {
			return true
		}
	}
	return false
}

// undeclaredPorts reports whether a workload of a policy has a port of which no Service says what it speaks. Of those that are declared to be something else
// than HTTP, other findings say more.
func undeclaredPorts(p *policy) bool {
	return slices.ContainsFunc(p.classes, func(c *class) bool {
		return slices.ContainsFunc(c.Ports, func(port compile.InboundPort) bool { return port.Protocol == protocol.Auto }) ||
			slices.ContainsFunc(c.Class.Ports, func(port registry.PodPort) bool {
				return !slices.ContainsFunc(c.Ports, func(named compile.InboundPort) bool { return named.Number == port.Number })
			})
	})
}
