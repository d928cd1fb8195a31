package translate

import (
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// order is that of the filters: what is audited is so whatever the verdict, and a denial outweighs what allows.
var order = []authz.Action{authz.Audit, authz.Deny, authz.Allow}

// The prefixes tell the filters' results apart in dynamic metadata: "<prefix>enforced_effective_policy_id".
var statPrefix = map[authz.Action]string{authz.Audit: "audit_", authz.Deny: "deny_", authz.Allow: "allow_"}

var shadowPrefix = map[authz.Action]string{authz.Deny: "istio_dry_run_deny_", authz.Allow: "istio_dry_run_allow_"}

// httpAuthorization are the filters by which policies hold for requests.
func httpAuthorization(policies []authz.Policy, trustDomain string) []*hcm.HttpFilter {
	var out []*hcm.HttpFilter
	paths := false
	for _, p := range policies {
		paths = paths || !p.Ignored && p.UsesPath()
	}
	for _, action := range order {
		enforced, shadow := rules(policies, action, trustDomain)
		if action == authz.Deny && paths {
			if enforced == nil {
				enforced = &rbac.RBAC{Action: rbac.RBAC_DENY, Policies: map[string]*rbac.Policy{}}
			}
			enforced.Policies[authz.AmbiguousPathRule] = ambiguousPath()
		}
		if enforced == nil && shadow == nil {
			continue
		}
		out = append(out, httpFilter("envoy.filters.http.rbac", &httprbac.RBAC{
			Rules: enforced, ShadowRules: shadow, RulesStatPrefix: statPrefix[action], ShadowRulesStatPrefix: shadowPrefix[action]}))
	}
	return out
}

// tcpAuthorization are the filters by which policies hold for connections that are not HTTP.
func tcpAuthorization(policies []authz.Policy, trustDomain string) []*listener.Filter {
	tcp := make([]authz.Policy, 0, len(policies))
	for _, p := range policies {
		tcp = append(tcp, p.TCP())
	}
	var out []*listener.Filter
	for _, action := range order {
		enforced, shadow := rules(tcp, action, trustDomain)
		if enforced == nil && shadow == nil {
			continue
		}
		out = append(out, networkFilter("envoy.filters.network.rbac", &netrbac.RBAC{
			Rules: enforced, ShadowRules: shadow, StatPrefix: statPrefix[action], ShadowRulesStatPrefix: shadowPrefix[action]}))
	}
	return out
}
