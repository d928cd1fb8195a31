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
		o := peerObject(&p.PeerPolicy)
		w.leftPermissive(r, p, o)
		w.sameScope(r, p, o)
	}
	w.refused(r)
}

// peerObject is the object of a policy, none of nil.
func peerObject(p *authz.PeerPolicy) Object {
	if p == nil {
		return Object{}
	}
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

// modeAround is the mode that would hold without a policy of a namespace or of some of its workloads, and which policy says so.
func (w *world) modeAround(p *registry.PeerAuth) (authz.TLSMode, Object) {
	namespace := "" // which has no policies, so that only those of the mesh hold
	if len(p.Selector) > 0 {
		namespace = p.Namespace
	}
	modes := compile.ModesOf(w.snap, w.set, namespace, nil)
	return modes.Default, peerObject(modes.By(0))
}

// sameScope says of a policy that another one holds in its place.
func (w *world) sameScope(r *report, p *registry.PeerAuth, o Object) {
	for q := range w.snap.PeerAuthsIn(p.Namespace) {
		if q.ID == p.ID || q.Ignored || !q.Before(&p.PeerPolicy) || (len(q.Selector) == 0) != (len(p.Selector) == 0) {
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
			r.say(ModeConflict, o, "", "%s is for %s, too, and holds alone, as it is older or first by its name", peerObject(&q.PeerPolicy), where)
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
	changes := map[place]*change{}
	for i := range w.classes {
		c := &w.classes[i]
		for at := range w.newlyStrict(c) {
			if changes[at] == nil {
				changes[at] = &change{callers: map[string]bool{}}
			}
			if n := seen[authz.Member{Namespace: c.Class.Namespace, Account: c.Class.ServiceAccount}]; n > 0 {
				changes[at].counted = append(changes[at].counted, fmt.Sprintf("%s/%s %.0f times", c.Class.Namespace, c.Class.ServiceAccount, n))
			}
			for p := range w.snap.PodsIn(c.Class.Namespace) {
				if !p.Proxied {
					changes[at].callers[p.ID] = true
				}
			}
		}
	}
	for at, c := range changes {
		slices.Sort(c.counted)
		if c.counted = slices.Compact(c.counted); len(c.counted) > 0 {
			r.add(StrictBreaks, "", at.Object, at.field, FromTraffic, "callers without mutual TLS would be refused, and there have been some since proxies started to count: %s", some(c.counted))
		} else if len(c.callers) > 0 {
			r.guess(StrictBreaks, at.Object, at.field, "pods without a proxy are in the same namespace and would be refused, if they call what it is for: %s", some(slices.Sorted(maps.Keys(c.callers))))
		}
	}
}

// place is a field of an object.
type place struct {
	Object
	field string
}

// newlyStrict is where it stands that ports of a workload are STRICT which were not.
func (w *world) newlyStrict(c *class) map[place]bool {
	out := map[place]bool{}
	if !c.pods[0].Proxied {
		return out
	}
	was := authz.PeerModes{Default: authz.Permissive}
	if w.before != nil {
		was = compile.ModesOf(w.before, w.set, c.Class.Namespace, c.Class.Labels)
	}
	modes := compile.ModesOf(w.snap, w.set, c.Class.Namespace, c.Class.Labels)
	for _, p := range c.EveryPort() {
		by := modes.By(p.Number)
		switch _, ofPort := modes.Ports[p.Number]; {
		case by == nil || p.Mode != authz.Strict || was.Mode(p.Number) == authz.Strict:
		case ofPort:
			out[place{peerObject(by), fmt.Sprintf("spec.portLevelMtls[%d].mode", p.Number)}] = true
		default:
			out[place{peerObject(by), "spec.mtls.mode"}] = true
		}
	}
	return out
}
