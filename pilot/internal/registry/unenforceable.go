package registry

import "github.com/bulwark-mesh/bulwark/pkg/authz"

// BadPolicy is a stored policy of which something cannot be enforced.
type BadPolicy struct {
	Kind      string          `json:"kind"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Problems  []authz.Problem `json:"problems"`
}

// Unenforceable lists the policies that admission would refuse today.
func Unenforceable(s *Snapshot) []BadPolicy {
	out := []BadPolicy{}
	add := func(kind, namespace, id string, problems []authz.Problem) {
		if len(problems) > 0 {
			out = append(out, BadPolicy{kind, namespace, id[len(namespace)+1:], problems})
		}
	}
	for p := range s.Policies() {
		add("AuthorizationPolicy", p.Namespace, p.ID, p.Problems)
	}
	for p := range s.PeerAuths() {
		add("PeerAuthentication", p.Namespace, p.ID, p.Problems)
	}
	for p := range s.JWTRules() {
		add("RequestAuthentication", p.Namespace, p.ID, p.Problems)
	}
	return out
}
