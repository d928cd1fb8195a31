package analyze

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// outside finds ServiceEntries and DestinationRules that do not hold, or not all of them, because of others.
func outside(w *world, r *report) {
	compiled := map[compile.Whose]*compile.Outside{}
	of := func(namespace string, sidecar *registry.Sidecar) *compile.Outside {
		whose := compile.OutsideFor(w.snap, w.set, namespace, sidecar)
		if compiled[whose] == nil {
			compiled[whose] = compile.CompileOutside(w.snap, w.set, whose)
		}
		return compiled[whose]
	}
	for e := range w.snap.ServiceEntries() {
		if e.Ignored {
			continue // Pilot says so
		}
		holds := of(e.Namespace, nil)
		w.overruled(r, e, holds)
		w.unidentified(r, e, holds)
	}
	w.claimed(r, of)
	for d := range w.snap.DestinationRules() {
		if d.Host == "" {
			continue
		}
		o := Object{registry.DestinationRules.Resource().Kind, d.Namespace, d.Name}
		for other := range w.snap.DestinationRulesFor(d.Host) {
			if other.Namespace == d.Namespace && other != d && (other.Created.Before(d.Created) || other.Created.Equal(d.Created) && other.ID < d.ID) {
				r.say(ModeConflict, o, "spec.host", "DestinationRule %s is for it, too, and holds alone where it is exported, as it is older or first by its name", other.ID)
				break
			}
		}
		if why := w.unanswered(d); why != "" {
			r.say(NobodyAnswers, o, "spec.trafficPolicy", "%s", why)
		}
		if why := w.unnamed(d); why != "" {
			r.sayIf(w.Whole, UnnamedHost, o, "spec.host", "%s", why)
		}
	}
}

// claimed says of ServiceEntries that whom a Sidecar keeps from what has no name may use their names for any server: nothing but the client says whom it has found.
func (w *world) claimed(r *report, of func(namespace string, sidecar *registry.Sidecar) *compile.Outside) {
	by := map[*registry.ServiceEntry]string{} // one Sidecar for which it is so
	for p := range w.snap.Pods() {
		sidecar := compile.SidecarOf(w.snap, w.set, p.Namespace, p.Labels)
		if !p.Proxied || !sidecar.Confines() {
			continue
		}
		for _, x := range of(p.Namespace, sidecar).Hosts {
			if x.Entry.Resolution == registry.None && x.Named() && !x.Secured() && (by[x.Entry] == "" || sidecar.ID < by[x.Entry]) {
				by[x.Entry] = sidecar.ID
			}
		}
	}
	for e, sidecar := range by {
		r.say(ClaimedName, Object{registry.ServiceEntries.Resource().Kind, e.Namespace, e.Name}, "spec.resolution",
			"Sidecar %s keeps its workloads from what has no name, but with NONE a connection goes where they open it, whatever host they name: use DNS or STATIC, or a DestinationRule by which the server has to prove its name", sidecar)
	}
}

// overruled says of a ServiceEntry what of it does not hold in its own namespace.
func (w *world) overruled(r *report, e *registry.ServiceEntry, holds *compile.Outside) {
	o := Object{registry.ServiceEntries.Resource().Kind, e.Namespace, e.Name}
	for _, host := range e.Hosts {
		for _, p := range e.Ports {
			if x := holds.Hosts[compile.HostPort{Host: host, Port: p.Number}]; x != nil && x.Entry != e && x.Entry.Namespace == e.Namespace {
				r.say(ModeConflict, o, "spec.hosts", "ServiceEntry %s names %s at port %d, too, and holds alone, as it is older or first by its name", x.Entry.ID, host, p.Number)
			}
		}
	}
	for _, n := range e.Networks {
		if compile.OfServices(holds.Ranges, n) {
			r.say(MeshAddress, o, "spec.addresses", "%s is in the range of Services' addresses, and nobody's to name anew; connections to it go where they would without this", n)
		}
	}
	for _, ip := range e.Addresses {
		if compile.OfMesh(w.snap, holds.Ranges, ip) {
			r.say(MeshAddress, o, "spec.addresses", "%s is that of a Service, of a pod or of the API server, and nobody's to name anew; connections to it go where they would without this", ip)
		}
	}
}

// unidentified says of rules that nobody is spoken with by them, as no identity of the mesh is named that a server could prove.
func (w *world) unidentified(r *report, e *registry.ServiceEntry, holds *compile.Outside) {
	for _, host := range e.Hosts {
		for _, p := range e.Ports {
			x := holds.Hosts[compile.HostPort{Host: host, Port: p.Number}]
			if x == nil || x.Entry != e || !x.Closed {
				continue
			}
			if t := x.Rule.For(p.Number); !t.Broken && t.Mode == registry.TLSIstioMutual {
				r.say(NobodyAnswers, Object{registry.DestinationRules.Resource().Kind, x.Rule.Namespace, x.Rule.Name}, "spec.trafficPolicy",
					"neither it nor ServiceEntry %s names an identity (spiffe://…) that a server of %s has to prove, so none is spoken with at port %d", e.ID, host, p.Number)
			}
		}
	}
}

// unanswered says why those refuse calls for whom a rule is, if it has proxies come without an identity of the mesh.
func (w *world) unanswered(d *registry.DestinationRule) string {
	for s := range w.snap.Services() {
		if compile.Host(s) != d.Host {
			continue
		}
		for _, p := range s.Ports {
			t := d.For(p.Number)
			if t == nil || t.Broken || t.Mode == registry.TLSIstioMutual {
				continue
			}
			if t.Secures() && w.set.Asks(s.ID) {
				return "it is for an external authorizer, which is not asked then, so that requests are denied"
			}
			if c := w.strict(s); c != nil {
				return fmt.Sprintf("%s has proxies come without an identity of the mesh, which the proxies of %s refuse, as they are STRICT", t.Mode, c.name())
			}
		}
	}
	return ""
}

// strict is a class of pods behind a Service whose proxies are STRICT at all ports, or nil.
func (w *world) strict(s *registry.Service) *class {
	for i := range w.classes {
		c := &w.classes[i]
		if c.pods[0].Proxied && c.Class.Namespace == s.Namespace && len(s.Selector) > 0 && authz.Selects(s.Selector, c.Class.Labels) &&
			!slices.ContainsFunc(c.EveryPort(), func(p compile.InboundPort) bool { return p.Mode != authz.Strict }) {
			return c
		}
	}
	return nil
}

// unnamed says why a rule is for nothing that anybody calls.
func (w *world) unnamed(d *registry.DestinationRule) string {
	if registry.IsService(d.Host) {
		for s := range w.snap.Services() {
			if compile.Host(s) == d.Host {
				return ""
			}
		}
		return "there is no Service " + d.Host
	}
	end, wildcard := strings.CutPrefix(d.Host, "*")
	for e := range w.snap.ServiceEntries() {
		if e.Ignored || d.Namespace != w.set.RootNamespace && e.Namespace != d.Namespace && e.Namespace != w.set.RootNamespace {
			continue
		}
		for _, h := range e.Hosts {
			if h == d.Host || wildcard && strings.HasSuffix(h, end) {
				return ""
			}
		}
	}
	return "no ServiceEntry names it whose clients this is for: their connections pass as they are, without what is said here of TLS"
}
