package analyze

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// modes looks at PeerAuthentications: what takes plaintext within a mesh or a namespace that does not, two of one scope, and whom STRICT would refuse.
func modes(w *world, r *report) {
	for p := range w.snap.PeerAuths() {
		if p.Ignored {
			continue
		}
		o := peerObject(p)
		w.leftPermissive(r, p, o)
		w.sameScope(r, p, o)
	}
	w.refused(r)
}

func peerObject(p *registry.PeerAuth) Object {
	return Object{registry.PeerAuths.Resource().Kind, p.Namespace, p.Name}
}

// leftPermissive says of a policy that takes plaintext where a wider one is STRICT.
func (w *world) leftPermissive(r *report, p *registry.PeerAuth, o Object) {
	if p.Namespace == w.set.RootNamespace {
		return
	}
	wider, by := w.modeAround(p)
	if wider != authz.Strict {
		return
	}
	say := func(field string, mode authz.TLSMode) {
		if mode == authz.Permissive || mode == authz.Disable {
			r.say(PermissiveLeft, o, field, "%s takes plaintext, where %s is STRICT", mode, by)
		}
	}
	say("spec.mtls.mode", p.Mode)
	for _, port := range slices.Sorted(maps.Keys(p.Ports)) {
		say(fmt.Sprintf("spec.portLevelMtls[%d].mode", port), p.Ports[port])
	}
}

// modeAround is the mode that would hold without a policy, and which policy says so.
func (w *world) modeAround(p *registry.PeerAuth) (authz.TLSMode, Object) {
	namespaces := []string{w.set.RootNamespace}
	if len(p.Selector) > 0 {
		namespaces = []string{p.Namespace, w.set.RootNamespace}
	}
	for _, ns := range namespaces {
		var oldest *registry.PeerAuth
		for q := range w.snap.PeerAuthsIn(ns) {
			if len(q.Selector) == 0 && !q.Ignored && (oldest == nil || holdsBefore(q, oldest)) {
				oldest = q
			}
		}
		if oldest != nil && oldest.Mode != "" {
			return oldest.Mode, peerObject(oldest)
		}
	}
	return authz.Permissive, Object{}
}

// holdsBefore reports whether of two policies of one scope the first holds: the older one, or of equally old ones the first by name.
func holdsBefore(a, b *registry.PeerAuth) bool {
	return a.Created.Before(b.Created) || a.Created.Equal(b.Created) && a.Name < b.Name
}

// sameScope says of a policy that another one holds in its place.
func (w *world) sameScope(r *report, p *registry.PeerAuth, o Object) {
	for q := range w.snap.PeerAuthsIn(p.Namespace) {
		if q.ID == p.ID || q.Ignored || !holdsBefore(q, p) || (len(q.Selector) == 0) != (len(p.Selector) == 0) {
			continue
		}
		where := "its namespace"
		if len(p.Selector) == 0 && p.Namespace == w.set.RootNamespace {
			where = "the mesh"
		}
		if len(p.Selector) > 0 {
			where = ""
			for pod := range w.snap.PodsSelected(p.Namespace, p.Selector) {
				if authz.Selects(q.Selector, pod.Labels) {
					where = "pod " + pod.ID
					break
				}
			}
			if where == "" && maps.Equal(p.Selector, q.Selector) {
				where = "the same workloads"
			}
		}
		if where != "" {
			r.say(ModeConflict, o, "", "%s is for %s, too, and holds alone, as it is older or first by its name", peerObject(q), where)
			return
		}
	}
}

// refused says of what files make STRICT that there are callers without mutual TLS.
func (w *world) refused(r *report) {
	if len(w.Files) == 0 {
		return
	}
	seen := map[authz.Member]float64{}
	for _, t := range w.Plaintext {
		seen[authz.Member{Namespace: t.Namespace, Account: t.ServiceAccount}] += t.Count
	}
	type change struct {
		counted []string
		callers map[string]bool
	}
	changes := map[Object]*change{}
	for i := range w.classes {
		c := &w.classes[i]
		by := w.newlyStrict(c)
		if by == nil {
			continue
		}
		o := peerObject(by)
		if changes[o] == nil {
			changes[o] = &change{callers: map[string]bool{}}
		}
		if n := seen[authz.Member{Namespace: c.Class.Namespace, Account: c.Class.ServiceAccount}]; n > 0 {
			changes[o].counted = append(changes[o].counted, fmt.Sprintf("%s/%s %.0f times", c.Class.Namespace, c.Class.ServiceAccount, n))
		}
		for p := range w.snap.PodsIn(c.Class.Namespace) {
			if !p.Proxied {
				changes[o].callers[p.ID] = true
			}
		}
	}
	for o, c := range changes {
		slices.Sort(c.counted)
		if c.counted = slices.Compact(c.counted); len(c.counted) > 0 {
			r.add(StrictBreaks, "", o, "spec.mtls.mode", FromTraffic, "callers without mutual TLS would be refused, and there have been some since proxies started to count: %s", some(c.counted))
		} else if len(c.callers) > 0 {
			r.guess(StrictBreaks, o, "spec.mtls.mode", "pods without a proxy are in the same namespace and would be refused, if they call what it is for: %s", some(slices.Sorted(maps.Keys(c.callers))))
		}
	}
}

// newlyStrict is the policy that makes a port of a workload STRICT which was not; nil if there is none.
func (w *world) newlyStrict(c *class) *registry.PeerAuth {
	if !c.pods[0].Proxied {
		return nil
	}
	before := compile.Workload{Other: compile.InboundPort{Mode: authz.Permissive}}
	if w.before != nil {
		before = compile.CompileWorkload(w.before, w.set, c.Class)
	}
	was := func(number uint32) authz.TLSMode {
		for _, p := range before.Ports {
			if p.Number == number {
				return p.Mode
			}
		}
		return before.Other.Mode
	}
	if !slices.ContainsFunc(c.EveryPort(), func(p compile.InboundPort) bool { return p.Mode == authz.Strict && was(p.Number) != authz.Strict }) {
		return nil
	}
	var found *registry.PeerAuth // the narrowest, which is looked at last
	for _, ns := range []string{w.set.RootNamespace, c.Class.Namespace} {
		for _, selecting := range []bool{false, true} {
			var oldest *registry.PeerAuth
			for p := range w.snap.PeerAuthsIn(ns) {
				if !p.Ignored && (len(p.Selector) > 0) == selecting && authz.Selects(p.Selector, c.Class.Labels) && (oldest == nil || holdsBefore(p, oldest)) {
					oldest = p
				}
			}
			if oldest != nil && (oldest.Mode == authz.Strict || slices.Contains(slices.Collect(maps.Values(oldest.Ports)), authz.Strict)) {
				found = oldest
			}
		}
	}
	return found
}
