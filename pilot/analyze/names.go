package analyze

import (
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// ownDomain reports whether a principal's trust domain means the mesh.
func (w *world) ownDomain(domain string) bool {
	return domain == mesh.DefaultTrustDomain || slices.Contains(w.set.TrustDomains(), domain)
}

// strangers finds whom policies name and who is not there, or comes without an identity.
func strangers(w *world, r *report) {
	for _, p := range w.policies {
		if p.Ignored {
			continue
		}
		for v := range values(p.spec) {
			m, named := v.member(w, p.Namespace)
			if !named {
				continue
			}
			switch {
			case w.Whole && !w.namespaces[m.Namespace]:
				r.say(UnknownNamespace, p.object, v.field, "there is no namespace %s", m.Namespace)
			case w.Whole && w.Accounts && m.Account != "" && !w.exists(m):
				r.say(UnknownAccount, p.object, v.field, "namespace %s has no service account %s", m.Namespace, m.Account)
			case p.Action == authz.Allow && !v.negated:
				w.withoutProxy(r, p, v, m)
			}
		}
	}
}

// exists reports whether there is a service account. Each namespace has "default", whether or not that is among the objects.
func (w *world) exists(m authz.Member) bool {
	return m.Account == "default" || w.accounts[m] || len(w.byAccount[m]) > 0
}

// withoutProxy says that whom a value admits has no proxy, and so no identity that could match.
func (w *world) withoutProxy(r *report, p *policy, v value, m authz.Member) {
	pods := w.byAccount[m]
	if m.Account == "" {
		pods = slices.Collect(w.snap.PodsIn(m.Namespace))
	}
	var without []string
	for _, pod := range pods {
		if pod.Proxied {
			return
		}
		without = append(without, pod.ID)
	}
	if len(pods) > 0 && !speaksForItself(pods) {
		r.sayIf(w.Whole, CallerNoProxy, p.object, v.field, "none of the pods of %s has a proxy (%s), so none of their requests has the identity that is asked for", m, some(without))
	}
}

// speaksForItself reports whether pods may have an identity without a proxy: those of the control plane do.
func speaksForItself(pods []*registry.Pod) bool {
	return slices.ContainsFunc(pods, func(p *registry.Pod) bool {
		return p.Namespace == mesh.Namespace && strings.HasPrefix(p.ServiceAccount, "bulwark-")
	})
}
