package rbac

import (
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// AskedKey is where filters of Asked's rules note which of them matches, the last one that does.
const AskedKey = istiocompat.CustomPrefix + "shadow_effective_policy_id"

// AskedPrefix is how the name of a rule begins of which a provider is asked, and of no other one: no provider's name has a bracket.
func AskedPrefix(provider string) string { return istiocompat.CustomRule(provider, "ns[") }

// Asked are the rules of requests, or of connections, of which an external authorizer is asked. They decide nothing themselves.
func Asked(policies []authz.Policy, provider string, connections bool) *rbac.RBAC {
	out := &rbac.RBAC{Action: rbac.RBAC_DENY, Policies: map[string]*rbac.Policy{}}
	for _, p := range policies {
		if p.Action != authz.Custom || p.Ignored || p.Provider != provider {
			continue
		}
		if connections {
			p = p.TCP()
		}
		for _, r := range p.Rules {
			if !r.Never {
				out.Policies[istiocompat.CustomRule(provider, p.RuleID(r))] = rule(r)
			}
		}
	}
	return out
}
