package analyze

import (
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// visibility finds Services that are not to be known by those whom policies admit to them.
func visibility(w *world, r *report) {
	sidecars := 0
	for _, o := range w.objects {
		if o.GetKind() == registry.Sidecars.Resource().Kind {
			sidecars++
		}
	}
	hidden := map[Object]map[string]bool{} // by Sidecar
	for s := range w.snap.Services() {
		if s.ExportTo == nil && sidecars == 0 || len(s.Ports) == 0 {
			continue
		}
		exported := *s
		exported.ExportTo = nil
		audience := compile.AudienceOf(w.snap, w.set, &exported)
		if audience.Everyone {
			continue // policies name nobody
		}
		for _, m := range slices.SortedFunc(maps.Keys(audience.Members), authz.Member.Compare) {
			if !compile.Exported(s, m.Namespace) {
				r.say(NotExported, Object{registry.Services.Resource().Kind, s.Namespace, s.Name}, "metadata.annotations["+istiocompat.ExportToAnnotation+"]",
					"it is not to be known in namespace %s, and AuthorizationPolicy %s admits %s", m.Namespace, some(audience.Members[m]), m)
				continue
			}
			if m.Account == "" {
				continue // a Sidecar narrows what a namespace may know, and that is what it is for
			}
			for _, p := range w.byAccount[m] {
				sidecar := compile.SidecarOf(w.snap, w.set, p.Namespace, p.Labels)
				if !p.Proxied || compile.Imports(sidecar, p.Namespace, s) {
					continue
				}
				o := Object{registry.Sidecars.Resource().Kind, sidecar.Namespace, sidecar.Name}
				if hidden[o] == nil {
					hidden[o] = map[string]bool{}
				}
				hidden[o][s.ID+" from "+m.String()+", which AuthorizationPolicy "+some(audience.Members[m])+" admits"] = true
			}
		}
	}
	for o, services := range hidden {
		r.say(HiddenBySidecar, o, "spec.egress", "it hides Service %s", some(slices.Sorted(maps.Keys(services))))
	}
}
