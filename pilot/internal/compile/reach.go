package compile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Audience is who may reach a service: the clients that a policy of some pod behind it can admit. Proxies of others are not told of the
// service. It is everyone unless that is certain, as a client outside of it is refused.
type Audience struct {
	// Everyone may reach it.
	Everyone bool
	// Open says why the policies leave nobody out; empty if they do.
	Open string
	// Members are who may reach it if not everyone, each with the policies that can admit it ("namespace/name"); with none where the
	// policies leave nobody out.
	Members map[authz.Member][]string
}

// Admits reports whether a service account may reach the service, and by which policies, or by none if the policies leave nobody out.
func (a Audience) Admits(namespace, account string) (by []string, ok bool) {
	if a.Everyone {
		return nil, true
	}
	for m, policies := range a.Members {
		if m.Admits(namespace, account) {
			by, ok = append(by, policies...), true
		}
	}
	slices.Sort(by)
	return slices.Compact(by), ok
}

// everyone is the audience of what nobody is kept from, and why.
func everyone(format string, args ...any) Audience {
	return Audience{Everyone: true, Open: fmt.Sprintf(format, args...)}
}

// AudienceOf finds out who may reach a service: whom policies admit, of the namespaces to which it is exported.
func AudienceOf(snap *registry.Snapshot, set Settings, s *registry.Service) Audience {
	if set.Asks(s.ID) {
		return everyone("it is an external authorizer, which proxies of all workloads ask")
	}
	a := admitted(snap, set, s)
	if s.ExportTo == nil || slices.Contains(s.ExportTo, "*") {
		return a
	}
	if a.Everyone {
		a = Audience{Open: a.Open, Members: map[authz.Member][]string{}}
		for _, ns := range s.ExportTo {
			if ns == "." {
				ns = s.Namespace
			}
			a.Members[authz.Member{Namespace: ns}] = nil
		}
	}
	maps.DeleteFunc(a.Members, func(m authz.Member, _ []string) bool { return !Exported(s, m.Namespace) })
	return a
}

// admitted is the audience by the ALLOW policies of the pods behind a service.
func admitted(snap *registry.Snapshot, set Settings, s *registry.Service) Audience {
	pods, open := behind(snap, s)
	if open != "" {
		return everyone("%s", open)
	}
	out := Audience{Members: map[authz.Member][]string{}}
	var seen []*registry.Pod // one for each set of labels
	for _, p := range pods {
		if !p.Proxied {
			return everyone("pod %s has no proxy", p.ID)
		}
		if slices.ContainsFunc(seen, func(o *registry.Pod) bool { return o.Namespace == p.Namespace && maps.Equal(o.Labels, p.Labels) }) {
			continue
		}
		seen = append(seen, p)
		if open := out.admit(snap, set, p); open != "" {
			return everyone("%s", open)
		}
	}
	return out
}

// admit adds those whom the policies of a pod can admit. It returns why these leave nobody out, if they do not.
func (a *Audience) admit(snap *registry.Snapshot, set Settings, p *registry.Pod) (open string) {
	restricted := false
	for _, ns := range scopes(set, p.Namespace) {
		for _, policy := range snap.PoliciesFor(ns, p.Labels) {
			if policy.Action != authz.Allow || policy.DryRun || !policy.InScope(set.RootNamespace, p.Namespace, p.Labels) ||
				!targeted(snap, policy.Namespace, policy.Services, p.Namespace, p.Labels) {
				continue
			}
			restricted = true
			for _, r := range policy.Rules {
				members, named := r.Members()
				if !named {
					return fmt.Sprintf("policy %s admits others than namespaces and identities that it names", policy.ID)
				}
				for _, m := range members {
					if !slices.Contains(a.Members[m], policy.ID) {
						a.Members[m] = append(a.Members[m], policy.ID)
					}
				}
			}
		}
	}
	if !restricted {
		return "no ALLOW policy holds for " + named(p)
	}
	return ""
}

// named is a pod in a sentence. One that is only imagined (see behind) has no name.
func named(p *registry.Pod) string {
	if p.Name == "" {
		return "the pods that it selects"
	}
	return "pod " + p.ID
}

// behind lists the pods that may stand behind a service. If something else may, it says what. As long as a service selects no pod, a pod
// is imagined that has the labels that it selects, so that the audience does not change while pods are replaced.
func behind(snap *registry.Snapshot, s *registry.Service) (pods []*registry.Pod, other string) {
	if len(s.Selector) > 0 {
		if pods = slices.Collect(snap.PodsSelected(s.Namespace, s.Selector)); len(pods) == 0 {
			pods = append(pods, &registry.Pod{Namespace: s.Namespace, Labels: s.Selector, Proxied: true})
		}
		return pods, ""
	}
	for slice := range snap.SlicesOf(s.ID) {
		for _, a := range slice.Addresses {
			p := snap.PodAt(a)
			if p == nil {
				return nil, "behind it is an address of no pod, " + a
			}
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return nil, "it selects no pods, and nothing is behind it"
	}
	return pods, ""
}
