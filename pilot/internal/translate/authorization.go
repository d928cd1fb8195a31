package translate

import (
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// order is that of the filters: what is audited is so whatever the verdict, and a denial outweighs what allows.
var order = []authz.Action{authz.Audit, authz.Deny, authz.Allow}

// The prefixes tell the filters' results apart in dynamic metadata: "<prefix>enforced_effective_policy_id".
var statPrefix = map[authz.Action]string{authz.Audit: "audit_", authz.Deny: "deny_", authz.Allow: "allow_"}

var shadowPrefix = map[authz.Action]string{authz.Deny: "istio_dry_run_deny_", authz.Allow: "istio_dry_run_allow_"}

// Policies reach a proxy as configuration of their own (ECDS), not as part of a listener: requests on connections that are
// open already follow a changed policy, no connection is drained for it, and next to nothing is sent. A proxy that
// has no such configuration yet refuses everything.
func httpAuthz(a authz.Action) string { return "authorization/http/" + strings.ToLower(string(a)) }

func tcpAuthz(a authz.Action) string { return "authorization/tcp/" + strings.ToLower(string(a)) }

// AuthorizationNames are the names of a workload's authorization resources.
func AuthorizationNames() []string {
	var out []string
	for _, action := range order {
		out = append(out, httpAuthz(action), tcpAuthz(action))
	}
	return out
}

// Authorization is the configuration of one filter of a workload, nil if there is none of the name.
func Authorization(w *compile.Workload, name string) *core.TypedExtensionConfig {
	for _, action := range order {
		switch name {
		case httpAuthz(action):
			filter := httpAuthorization(w.Policies, action)
			switch action {
			case authz.Audit:
				filter.ShadowRules, filter.ShadowRulesStatPrefix = servedBy(w), servicePrefix
			case authz.Deny:
				filter.Rules = withRule(filter.GetRules(), plaintextRule, strictPorts(w))
			}
			return extension(name, filter)
		case tcpAuthz(action):
			filter := tcpAuthorization(w.Policies, action)
			if action == authz.Audit {
				filter.ShadowRules, filter.ShadowRulesStatPrefix = servedBy(w), servicePrefix
			}
			return extension(name, filter)
		}
	}
	return nil
}

// httpAuthorization is the filter by which the policies of one action hold for requests.
func httpAuthorization(policies []authz.Policy, action authz.Action) *httprbac.RBAC {
	enforced, shadow := rules(policies, action)
	for _, a := range authz.Ambiguities {
		if ambiguityHolds(policies, action, a.Attribute) {
			if enforced == nil {
				enforced = &rbac.RBAC{Action: actions[action], Policies: map[string]*rbac.Policy{}}
			}
			enforced.Policies[a.Rule] = ambiguous(a)
		}
	}
	return &httprbac.RBAC{Rules: enforced, ShadowRules: shadow, RulesStatPrefix: statPrefix[action], ShadowRulesStatPrefix: shadowPrefix[action]}
}

// ambiguityHolds reports whether the filter of an action looks for ambiguous texts of an attribute: the one that denies does
// if any rule that decides looks at the attribute, the one that audits if a rule of its own does.
func ambiguityHolds(policies []authz.Policy, action authz.Action, attribute authz.Attribute) bool {
	return action != authz.Allow && slices.ContainsFunc(policies, func(p authz.Policy) bool {
		return !p.Ignored && !p.DryRun && (p.Action == authz.Audit) == (action == authz.Audit) && p.Uses(attribute)
	})
}

// tcpAuthorization is the filter by which the policies of one action hold for connections that are not HTTP.
func tcpAuthorization(policies []authz.Policy, action authz.Action) *netrbac.RBAC {
	tcp := make([]authz.Policy, 0, len(policies))
	for _, p := range policies {
		tcp = append(tcp, p.TCP())
	}
	enforced, shadow := rules(tcp, action)
	out := &netrbac.RBAC{Rules: enforced, ShadowRules: shadow, StatPrefix: statPrefix[action], ShadowRulesStatPrefix: shadowPrefix[action]}
	if action == authz.Allow && shadow == nil {
		// Which rule let a connection in is told only of shadow rules, so the enforced ones are that, too.
		out.ShadowRules, out.ShadowRulesStatPrefix = enforced, statPrefix[action]
	}
	return out
}

func httpAuthorizationFilters() []*hcm.HttpFilter {
	out := []*hcm.HttpFilter{{Name: httpRevocations, ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(&httprbac.RBAC{})}}}
	for _, action := range order {
		out = append(out, &hcm.HttpFilter{Name: httpAuthz(action), ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(&httprbac.RBAC{})}})
	}
	return out
}

// badAuthority answers 400 to a request whose authority is none, before any policy is asked: what a server makes of user
// information or of a second host in it, no rule could know.
func badAuthority() *route.Route {
	off := map[string]*anypb.Any{}
	for _, f := range httpAuthorizationFilters() {
		off[f.GetName()] = typed(&route.FilterConfig{Disabled: true})
	}
	return &route.Route{
		Name: "bad-authority", TypedPerFilterConfig: off,
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}, Headers: []*route.HeaderMatcher{{
			Name: ":authority", InvertMatch: true, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: pattern(authz.Authority)}}}},
		Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 400}},
	}
}

func tcpAuthorizationFilters() []*listener.Filter {
	out := []*listener.Filter{{Name: tcpRevocations, ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&netrbac.RBAC{})}}}
	for _, action := range order {
		out = append(out, &listener.Filter{Name: tcpAuthz(action), ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&netrbac.RBAC{})}})
	}
	return out
}

// discovered is a filter whose configuration, of the type of kind, comes by itself. The listener waits for it.
func discovered(kind proto.Message) *core.ExtensionConfigSource {
	source := overADS()
	source.InitialFetchTimeout = seconds(0)
	return &core.ExtensionConfigSource{ConfigSource: source, TypeUrls: []string{typed(kind).GetTypeUrl()}}
}
