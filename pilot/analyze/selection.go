package analyze

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	istio "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// unselected finds what is for workloads that are not there, or that no proxy enforces anything for.
func unselected(w *world, r *report) {
	for _, p := range w.policies {
		if !p.Ignored {
			w.selected(r, p.object, "spec.selector.matchLabels", p.Selector, p.Namespace == w.set.RootNamespace)
		}
	}
	for p := range w.snap.PeerAuths() {
		if !p.Ignored {
			w.selected(r, Object{registry.PeerAuths.Resource().Kind, p.Namespace, p.Name}, "spec.selector.matchLabels", p.Selector, p.Namespace == w.set.RootNamespace)
		}
	}
	for _, j := range w.tokenRules() {
		w.selected(r, j.object, "spec.selector.matchLabels", j.spec.GetSelector().GetMatchLabels(), j.object.Namespace == w.set.RootNamespace)
	}
	for _, o := range w.objects {
		if kind := registry.Sidecars.Resource(); o.GetKind() == kind.Kind && o.GroupVersionKind().Group == kind.Group {
			var spec istio.Sidecar
			decode(o, &spec)
			w.selected(r, objectOf(o), "spec.workloadSelector.labels", spec.GetWorkloadSelector().GetLabels(), false)
		}
	}
}

// selected says of an object whether it selects anything. Without a selector it is for what may come, and only that nothing of what is there has a proxy is worth a word.
func (w *world) selected(r *report, o Object, field string, selector map[string]string, everywhere bool) {
	inScope, selected, proxied := 0, 0, 0
	values := map[string]bool{} // of the labels that are asked for
	var without []string
	for p := range w.podsOf(o.Namespace, everywhere) {
		inScope++
		for key := range selector {
			if v, ok := p.Labels[key]; ok {
				values[key+"="+v] = true
			}
		}
		if !authz.Selects(selector, p.Labels) {
			continue
		}
		selected++
		if p.Proxied {
			proxied++
		} else if len(without) < 10 {
			without = append(without, p.ID)
		}
	}
	where := "in namespace " + o.Namespace
	if everywhere {
		where = "in any namespace"
	}
	if len(authz.CheckLabels("", selector)) > 0 {
		return // Pilot says so
	}
	switch {
	case inScope == 0 && !w.Whole: // the workloads are elsewhere
	case len(selector) > 0 && selected == 0:
		there := "no pod there has any of these labels"
		if len(values) > 0 {
			there = "there is " + some(slices.Sorted(maps.Keys(values)))
		}
		r.sayIf(w.Whole, SelectsNothing, o, field, "no pod %s, nor what would make one, has %s; %s", where, labels(selector), there)
	case selected > 0 && proxied == 0 && !everywhere:
		if len(selector) == 0 {
			field = ""
		}
		r.sayIf(w.Whole, NoProxy, o, field, "no proxy enforces it: none of the pods that it is for has one (%s)", some(without))
	}
}

// podsOf are the pods of a namespace, or of all.
func (w *world) podsOf(namespace string, everywhere bool) func(func(*registry.Pod) bool) {
	if everywhere {
		return w.snap.Pods()
	}
	return w.snap.PodsIn(namespace)
}

func labels(selector map[string]string) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		out = append(out, fmt.Sprintf("%s=%s", key, selector[key]))
	}
	return strings.Join(out, ", ")
}

// tokenRule is a RequestAuthentication, as far as it can be read.
type tokenRule struct {
	object Object
	spec   *security.RequestAuthentication
}

func (w *world) tokenRules() (out []tokenRule) {
	kind := registry.RequestAuths.Resource()
	for _, o := range w.objects {
		if o.GetKind() == kind.Kind && o.GroupVersionKind().Group == kind.Group {
			j := tokenRule{objectOf(o), &security.RequestAuthentication{}}
			decode(o, j.spec)
			out = append(out, j)
		}
	}
	return out
}

// holdsFor reports whether it is for a workload.
func (j tokenRule) holdsFor(rootNamespace string, c *class) bool {
	return (j.object.Namespace == rootNamespace || j.object.Namespace == c.Class.Namespace) && len(j.spec.GetTargetRefs()) == 0 && j.spec.GetTargetRef() == nil &&
		authz.Selects(j.spec.GetSelector().GetMatchLabels(), c.Class.Labels)
}
