package translate

import (
	"maps"
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	composite "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	network "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// stage is a place in the chain of filters that decide about a request or a connection: policies of an action, tokens, and so on.
//
// The configuration of a stage's filters reaches a proxy by itself (ECDS), not as part of a listener: requests on connections that are
// open already follow a changed policy, no connection is drained for it, and next to nothing is sent. A proxy that has no such
// configuration yet refuses everything.
type stage struct {
	name     string
	http     func(*compile.Workload) proto.Message // nil if it decides about no requests
	kinds    []proto.Message                       // of which that may be
	tcp      func(*compile.Workload) proto.Message // nil if it decides about no connections
	tcpKinds []proto.Message                       // of which that may be; nil: RBAC
	silent   func(w *compile.Workload, mutual bool) bool
	action   authz.Action // of the policies that hold there, if it is a stage of policies
	further  int          // 0, or it is there for workloads alone that have more external authorizers for connections than these
}

// there says whether a workload has the stage.
func (s stage) there(w *compile.Workload) bool {
	if s.further == 0 {
		return true
	}
	asked, _ := ofConnections(w)
	return s.further < len(asked)
}

// ofConnections are the kinds of its filter for connections.
func (s stage) ofConnections() []proto.Message {
	if s.tcpKinds != nil {
		return s.tcpKinds
	}
	return []proto.Message{&netrbac.RBAC{}}
}

func (s stage) httpName() string { return "authorization/http/" + s.name }

func (s stage) tcpName() string { return "authorization/tcp/" + s.name }

// stages are in the order of the filters: tokens are verified before policies ask for them, what is audited is so whatever the verdict, and a denial outweighs what allows.
var stages = append(externalAuthorizers,
	verified,
	policyStage("audit", authz.Audit, nil, func(w *compile.Workload) proto.Message {
		filter := connections(w, authz.Audit)
		filter.ShadowRules, filter.ShadowRulesStatPrefix = rbac.ServedBy(w), rbac.ServicePrefix
		return filter
	}),
	policyStage("deny", authz.Deny, func(w *compile.Workload, filter *httprbac.RBAC) {
		filter.Rules = rbac.With(filter.GetRules(), rbac.PlaintextRule, rbac.StrictPorts(w))
	}, func(w *compile.Workload) proto.Message { return connections(w, authz.Deny) }),
	policyStage("allow", authz.Allow, nil, func(w *compile.Workload) proto.Message {
		filter := connections(w, authz.Allow)
		if filter.ShadowRules == nil {
			// Which rule let a connection in is told only of shadow rules, so the enforced ones are that, too.
			filter.ShadowRules, filter.ShadowRulesStatPrefix = filter.Rules, rbac.Prefix(authz.Allow)
		}
		return filter
	}),
)

// policyStage is where the policies of an action hold. More is what else its filter for requests has.
func policyStage(name string, action authz.Action, more func(*compile.Workload, *httprbac.RBAC), tcp func(*compile.Workload) proto.Message) stage {
	part := func(w *compile.Workload, policies []authz.Policy) *httprbac.RBAC {
		filter := requests(w, policies, action)
		if more != nil {
			more(w, filter)
		}
		return filter
	}
	return stage{
		name: name, action: action, tcp: tcp, kinds: []proto.Message{&httprbac.RBAC{}, &extension.ExtensionWithMatcher{}},
		http: func(w *compile.Workload) proto.Message { return byPeer(w, action, part) },
		silent: func(w *compile.Workload, mutual bool) bool {
			return !rbac.Speaks(w.Policies, action) && !forbidsPlaintext(w, action, mutual)
		},
	}
}

// requests is the filter by which policies of one action, of a workload, hold for requests.
func requests(w *compile.Workload, policies []authz.Policy, action authz.Action) *httprbac.RBAC {
	enforced, shadow := rbac.Requests(w.Policies, policies, action)
	return &httprbac.RBAC{Rules: enforced, ShadowRules: shadow, RulesStatPrefix: rbac.Prefix(action), ShadowRulesStatPrefix: rbac.TrialPrefix(action)}
}

// connections is the filter by which they hold for connections that are not HTTP.
func connections(w *compile.Workload, action authz.Action) *netrbac.RBAC {
	enforced, shadow := rbac.Connections(w.Policies, action)
	return &netrbac.RBAC{Rules: enforced, ShadowRules: shadow, StatPrefix: rbac.Prefix(action), ShadowRulesStatPrefix: rbac.TrialPrefix(action)}
}

// authorizationStages finds stages by the names of their resources.
var authorizationStages = func() map[string]stage {
	out := map[string]stage{}
	for _, s := range stages {
		if s.http != nil {
			out[s.httpName()] = s
		}
		if s.tcp != nil {
			out[s.tcpName()] = s
		}
	}
	return out
}()

// AuthorizationNames are the names of the authorization resources of workloads. Not each workload has all of them; see HasAuthorization.
var AuthorizationNames = append(slices.Sorted(maps.Keys(authorizationStages)), OpenRules)

// HasAuthorization says whether a workload has the authorization resource of a name.
func HasAuthorization(w *compile.Workload, name string) bool {
	s, ok := authorizationStages[name]
	return name == OpenRules || ok && s.there(w)
}

// Authorization is the configuration of one filter of a workload, nil if it has none of the name. OpenRules need their module from somewhere.
func Authorization(w *compile.Workload, name string, in ModuleSource) *core.TypedExtensionConfig {
	if name == OpenRules {
		return envoy.Extension(name, forbiddenByPolicies(w, in))
	}
	switch s, ok := authorizationStages[name]; {
	case !ok || !s.there(w):
		return nil
	case s.http != nil && name == s.httpName():
		return envoy.Extension(name, s.http(w))
	default:
		return envoy.Extension(name, s.tcp(w))
	}
}

// peerKey is where the identity of the client of a connection is noted, nothing in plaintext. Envoy's own input for a certificate's URI says of plaintext that it cannot be
// told yet, and a filter that is to be found by it is then not asked: nothing would be denied.
const peerKey = "bulwark.peer"

// byPeer is a stage's filter for HTTP, made by part of some of a workload's policies, or, where policies demand much of many peers, one for each of them, and the whole for
// whoever else there is.
func byPeer(w *compile.Workload, action authz.Action, part func(*compile.Workload, []authz.Policy) *httprbac.RBAC) proto.Message {
	all := part(w, w.Policies)
	parts := authz.ByPeer(w.Policies, action)
	if parts == nil {
		return all
	}
	peers := map[string]*xds.Matcher_OnMatch{}
	for uri, policies := range parts {
		peers[uri] = delegated(part(w, policies))
	}
	return &extension.ExtensionWithMatcher{
		XdsMatcher:      tree("peer", &network.FilterStateInput{Key: peerKey}, peers, delegated(all)),
		ExtensionConfig: envoy.Extension("envoy.filters.http.composite", &composite.Composite{}),
	}
}

// delegated has another filter do the work.
func delegated(to *httprbac.RBAC) *xds.Matcher_OnMatch {
	return &xds.Matcher_OnMatch{OnMatch: &xds.Matcher_OnMatch_Action{Action: &xdscore.TypedExtensionConfig{Name: "composite-action",
		TypedConfig: envoy.Typed(&composite.ExecuteFilterAction{TypedConfig: envoy.Extension("envoy.filters.http.rbac", to)})}}}
}

func httpAuthorizationFilters() []*hcm.HttpFilter {
	out := []*hcm.HttpFilter{{Name: httpRevocations, ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(&httprbac.RBAC{})}}}
	for _, s := range stages {
		if s.http != nil {
			out = append(out, &hcm.HttpFilter{Name: s.httpName(), ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(s.kinds...)}})
		}
	}
	return out
}

// silentFilters are those that have nothing to say about a workload's requests, over mutual TLS or in plaintext. What is denied in plaintext for
// being that is not denied over mutual TLS.
func silentFilters(w *compile.Workload, revoked, mutual bool) (out []string) {
	if !revoked {
		out = append(out, httpRevocations)
	}
	for _, s := range stages {
		if s.http != nil && s.silent(w, mutual) {
			out = append(out, s.httpName())
		}
	}
	return out
}

// suspicious is what some filters look for that have nothing to say about requests without it: those filters are quiet. CONNECT has routes of its own, which ask all.
func suspicious(w *compile.Workload, mutual bool) (suspicions []authz.Ambiguity, quiet []string) {
	for _, s := range stages {
		if s.action == "" {
			continue
		}
		of, only := rbac.Suspicions(w.Policies, s.action)
		if only && len(of) > 0 && !forbidsPlaintext(w, s.action, mutual) {
			of = slices.DeleteFunc(of, func(a authz.Ambiguity) bool { return a.Rule == authz.TunnelRule })
			suspicions, quiet = append(suspicions, of...), append(quiet, s.httpName())
		}
	}
	return suspicions, quiet
}

// forbidsPlaintext says whether the policies of an action deny plaintext where it is looked for.
func forbidsPlaintext(w *compile.Workload, action authz.Action, mutual bool) bool {
	return !mutual && action == authz.Deny && rbac.StrictPorts(w) != nil
}

// off has filters not be made for a request.
func off(filters []string) map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for _, name := range filters {
		out[name] = envoy.Typed(&route.FilterConfig{Disabled: true})
	}
	return out
}

// badAuthority answers 400 to what has no proper authority, before any policy is asked: what a server makes of user
// information or of a second host in it, no rule could know.
func badAuthority(of *route.RouteMatch) *route.Route {
	var all []string
	for _, f := range httpAuthorizationFilters() {
		all = append(all, f.GetName())
	}
	of.Headers = []*route.HeaderMatcher{{
		Name: ":authority", InvertMatch: true, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: envoy.Pattern(authz.Authority)}}}
	return &route.Route{
		TypedPerFilterConfig: off(all), Match: of,
		Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 400}},
	}
}

func tcpAuthorizationFilters(w *compile.Workload) []*listener.Filter {
	out := []*listener.Filter{{Name: tcpRevocations, ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&netrbac.RBAC{})}}}
	for _, s := range stages {
		if s.tcp == nil || !s.there(w) {
			continue
		}
		out = append(out, &listener.Filter{Name: s.tcpName(), ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(s.ofConnections()...)}})
	}
	return out
}

// discovered is a filter whose configuration, of the type of one of kinds, comes by itself. The listener waits for it.
func discovered(kinds ...proto.Message) *core.ExtensionConfigSource {
	source := overADS()
	source.InitialFetchTimeout = envoy.Seconds(0)
	out := &core.ExtensionConfigSource{ConfigSource: source}
	for _, kind := range kinds {
		out.TypeUrls = append(out.TypeUrls, envoy.Typed(kind).GetTypeUrl())
	}
	return out
}
