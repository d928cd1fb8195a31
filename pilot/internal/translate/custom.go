package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	composite "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	extauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netextauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// The stages of external authorizers come before all others. Of requests, one filter is a chain for all of a workload's authorizers: of each, rules that decide nothing say whether it
// is to be asked, and then it is. Of connections the two are filters of their own, and so are those of each further authorizer, for workloads that have it.
var externalAuthorizers = func() []stage {
	out := []stage{
		{name: "custom", kinds: []proto.Message{&httprbac.RBAC{}, &extension.ExtensionWithMatcher{}},
			http:   func(w *compile.Workload) proto.Message { return askedOfRequests(w) },
			silent: func(w *compile.Workload, _ bool) bool { return len(w.Authorizers) == 0 },
			tcp:    func(w *compile.Workload) proto.Message { return askedOfConnections(w, 0) }},
	}
	for i := range mostOfConnections {
		number := ""
		if i > 0 {
			number = fmt.Sprintf("-%d", i+1)
			out = append(out, stage{name: "custom" + number, further: i, tcp: func(w *compile.Workload) proto.Message { return askedOfConnections(w, i) }})
		}
		out = append(out, stage{name: "custom-ask" + number, further: i, tcp: func(w *compile.Workload) proto.Message { return connectionAuthorizer(w, i) },
			tcpKinds: []proto.Message{&netrbac.RBAC{}, &netextauthz.ExtAuthz{}}})
	}
	return out
}()

// mostOfConnections is how many authorizers may be asked about one connection. What the rules of more of them match is denied.
const mostOfConnections = 4

func askedOfRequests(w *compile.Workload) proto.Message {
	if len(w.Authorizers) == 0 {
		return &httprbac.RBAC{}
	}
	chain := &composite.FilterChainConfiguration{}
	for _, p := range w.Authorizers {
		chain.TypedConfig = append(chain.TypedConfig,
			envoy.Extension("whether-"+p.Name, &httprbac.RBAC{ShadowRules: rbac.Asked(w.Policies, p.Name, false), ShadowRulesStatPrefix: istiocompat.CustomPrefix}),
			envoy.Extension("ask-"+p.Name, requestAuthorizer(p)))
	}
	return &extension.ExtensionWithMatcher{
		XdsMatcher: &xds.Matcher{OnNoMatch: &xds.Matcher_OnMatch{OnMatch: &xds.Matcher_OnMatch_Action{Action: &xdscore.TypedExtensionConfig{
			Name: "composite-action", TypedConfig: envoy.Typed(&composite.ExecuteFilterAction{FilterChain: chain})}}}},
		ExtensionConfig: envoy.Extension("envoy.filters.http.composite", &composite.Composite{}),
	}
}

func requestAuthorizer(p authorizer.Provider) *extauthz.ExtAuthz {
	out := &extauthz.ExtAuthz{
		TransportApiVersion: core.ApiVersion_V3, FailureModeAllow: p.FailOpen, StatusOnError: &typev3.HttpStatus{Code: typev3.StatusCode(p.StatusOnError)},
		FilterEnabledMetadata: askedFor("envoy.filters.http.rbac", p.Name),
	}
	if b := p.Body; b != nil {
		out.WithRequestBody = &extauthz.BufferSettings{MaxRequestBytes: b.MaxBytes, AllowPartialMessage: b.Partial, PackAsBytes: b.AsBytes}
	}
	if p.GRPC {
		out.Services = &extauthz.ExtAuthz_GrpcService{GrpcService: authorizerOverGRPC(p)}
		return out
	}
	out.AllowedHeaders = headers(p.RequestHeaders)
	service := &extauthz.HttpService{
		ServerUri:             &core.HttpUri{Uri: "http://" + compile.HostOf(p.Service), HttpUpstreamType: &core.HttpUri_Cluster{Cluster: authorizerCluster(p)}, Timeout: durationpb.New(p.Timeout)},
		PathPrefix:            p.PathPrefix,
		AuthorizationResponse: &extauthz.AuthorizationResponse{AllowedUpstreamHeaders: headers(p.UpstreamOnAllow), AllowedClientHeaders: headers(p.DownstreamOnDeny), AllowedClientHeadersOnSuccess: headers(p.DownstreamOnAllow)},
	}
	if len(p.AdditionalHeaders) > 0 {
		service.AuthorizationRequest = &extauthz.AuthorizationRequest{}
		for _, name := range slices.Sorted(maps.Keys(p.AdditionalHeaders)) {
			service.AuthorizationRequest.HeadersToAdd = append(service.AuthorizationRequest.HeadersToAdd, &core.HeaderValue{Key: name, Value: p.AdditionalHeaders[name]})
		}
	}
	out.Services = &extauthz.ExtAuthz_HttpService{HttpService: service}
	return out
}

func authorizerOverGRPC(p authorizer.Provider) *core.GrpcService {
	return &core.GrpcService{Timeout: durationpb.New(p.Timeout), TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{
		ClusterName: authorizerCluster(p), Authority: compile.HostOf(p.Service)}}}
}

// authorizerCluster is the cluster of the authorizer's Service, which every proxy has.
func authorizerCluster(p authorizer.Provider) string {
	return istiocompat.OutboundCluster(p.Port, "", compile.HostOf(p.Service))
}

// askedFor matches requests, or connections, of which a filter before has noted that the authorizer is to be asked.
func askedFor(filter, provider string) *matcher.MetadataMatcher {
	return &matcher.MetadataMatcher{Filter: filter, Path: []*matcher.MetadataMatcher_PathSegment{{Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: rbac.AskedKey}}},
		Value: &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_StringMatch{StringMatch: envoy.Prefix(rbac.AskedPrefix(provider))}}}
}

// headers are patterns of names.
func headers(patterns []string) *matcher.ListStringMatcher {
	if len(patterns) == 0 {
		return nil
	}
	out := &matcher.ListStringMatcher{}
	for _, p := range patterns {
		m := rbac.Text(authz.Wildcard(p), true)
		out.Patterns = append(out.Patterns, m)
	}
	return out
}

// ofConnections are the authorizers that are asked about connections: those that speak gRPC. What others that do would be asked is denied; one that speaks HTTP has no word there.
func ofConnections(w *compile.Workload) (asked, others []authorizer.Provider) {
	for _, p := range w.Authorizers {
		switch {
		case !p.GRPC:
		case len(asked) < mostOfConnections:
			asked = append(asked, p)
		default:
			others = append(others, p)
		}
	}
	return asked, others
}

// askSeveral tells the filter chains for TCP of workloads that have further authorizers from those of others, by how many there are.
func askSeveral(w *compile.Workload) string {
	if asked, _ := ofConnections(w); len(asked) > 1 {
		return fmt.Sprintf("-asks-%d", len(asked))
	}
	return ""
}

// askedOfConnections are the rules by which the i-th authorizer is asked.
func askedOfConnections(w *compile.Workload, i int) proto.Message {
	out := &netrbac.RBAC{StatPrefix: "custom_"}
	asked, others := ofConnections(w)
	if i >= len(asked) {
		return out
	}
	out.ShadowRules, out.ShadowRulesStatPrefix = rbac.Asked(w.Policies, asked[i].Name, true), istiocompat.CustomPrefix
	if i == 0 {
		for _, other := range others {
			for name, rule := range rbac.Asked(w.Policies, other.Name, true).GetPolicies() {
				out.Rules = rbac.With(out.Rules, strings.TrimPrefix(name, istiocompat.CustomRule(other.Name, "")), rule)
			}
		}
	}
	return out
}

func connectionAuthorizer(w *compile.Workload, i int) proto.Message {
	asked, _ := ofConnections(w)
	if i >= len(asked) {
		return &netrbac.RBAC{StatPrefix: "custom_"}
	}
	return &netextauthz.ExtAuthz{StatPrefix: "custom", GrpcService: authorizerOverGRPC(asked[i]), FailureModeAllow: asked[i].FailOpen, TransportApiVersion: core.ApiVersion_V3,
		FilterEnabledMetadata: askedFor("envoy.filters.network.rbac", asked[i].Name)}
}
