package translate

import (
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
// is to be asked, and then it is. Of connections the two are filters of their own, and one authorizer can be asked.
var (
	askedWhether = stage{
		name: "custom", kinds: []proto.Message{&httprbac.RBAC{}, &extension.ExtensionWithMatcher{}},
		http:   func(w *compile.Workload) proto.Message { return askedOfRequests(w) },
		silent: func(w *compile.Workload, _ bool) bool { return len(w.Authorizers) == 0 },
		tcp:    func(w *compile.Workload) proto.Message { return askedOfConnections(w) },
	}
	askThem = stage{name: "custom-ask", tcp: func(w *compile.Workload) proto.Message { return connectionAuthorizer(w) },
		tcpKinds: []proto.Message{&netrbac.RBAC{}, &netextauthz.ExtAuthz{}}}
)

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

// ofConnections is the authorizer that is asked about connections: the first that speaks gRPC. Others that do are not, and what their rules match is denied; one that speaks HTTP has no word there.
func ofConnections(w *compile.Workload) (asked *authorizer.Provider, others []string) {
	for i, p := range w.Authorizers {
		switch {
		case !p.GRPC:
		case asked == nil:
			asked = &w.Authorizers[i]
		default:
			others = append(others, p.Name)
		}
	}
	return asked, others
}

func askedOfConnections(w *compile.Workload) proto.Message {
	p, others := ofConnections(w)
	if p == nil {
		return &netrbac.RBAC{StatPrefix: "custom_"}
	}
	out := &netrbac.RBAC{ShadowRules: rbac.Asked(w.Policies, p.Name, true), ShadowRulesStatPrefix: istiocompat.CustomPrefix, StatPrefix: "custom_"}
	for _, other := range others {
		for name, rule := range rbac.Asked(w.Policies, other, true).GetPolicies() {
			out.Rules = rbac.With(out.Rules, strings.TrimPrefix(name, istiocompat.CustomRule(other, "")), rule)
		}
	}
	return out
}

func connectionAuthorizer(w *compile.Workload) proto.Message {
	p, _ := ofConnections(w)
	if p == nil {
		return &netrbac.RBAC{StatPrefix: "custom_"}
	}
	return &netextauthz.ExtAuthz{StatPrefix: "custom", GrpcService: authorizerOverGRPC(*p), FailureModeAllow: p.FailOpen, TransportApiVersion: core.ApiVersion_V3,
		FilterEnabledMetadata: askedFor("envoy.filters.network.rbac", p.Name)}
}
