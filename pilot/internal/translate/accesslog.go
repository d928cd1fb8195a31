package translate

import (
	"fmt"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	cel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	als "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	tracing "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// ACCESSLOG.md says what the agent can rely on; keep it true.

const (
	deniedRequest    = `response.code_details.startsWith('rbac_access_denied')`
	deniedConnection = `connection.termination_details.startsWith('rbac_access_denied')`
	refusedInbound   = `response.code_details == 'filter_chain_not_found' || connection.transport_failure_reason != ''`
	failedUpstream   = `upstream.transport_failure_reason.contains('TLS_error')`
)

func tags(pairs ...string) []*tracing.CustomTag {
	var out []*tracing.CustomTag
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, &tracing.CustomTag{Tag: "bulwark." + pairs[i], Type: &tracing.CustomTag_Value{Value: pairs[i+1]}})
	}
	return out
}

func inboundTags(kind string, port uint32) []*tracing.CustomTag {
	out := tags("direction", "inbound", "kind", kind,
		"source_principal", "%DOWNSTREAM_PEER_URI_SAN%", "destination_principal", "%DOWNSTREAM_LOCAL_URI_SAN%",
		"tls_version", "%DOWNSTREAM_TLS_VERSION%")
	if port != 0 {
		out = append(out, tags("destination_port", fmt.Sprint(port))...)
	}
	switch kind {
	case "tcp":
		out = append(out, tags("allow_policy", fmt.Sprintf("%%DYNAMIC_METADATA(envoy.filters.network.rbac:%sshadow_effective_policy_id)%%", statPrefix[authz.Allow]))...)
	case "http":
		const rbac = "%%DYNAMIC_METADATA(envoy.filters.http.rbac:%senforced_effective_policy_id)%%"
		for _, action := range order {
			name := statPrefix[action] + "policy"
			out = append(out, tags(name, fmt.Sprintf(rbac, statPrefix[action]))...)
		}
	}
	return out
}

func outboundTags(kind string) []*tracing.CustomTag {
	return tags("direction", "outbound", "kind", kind, "destination_principal", "%UPSTREAM_PEER_URI_SAN%",
		"destination_service", "%CLUSTER_METADATA("+metadataKey+":service)%", "destination_port", "%DOWNSTREAM_LOCAL_PORT%")
}

func grpcLog(custom []*tracing.CustomTag) *als.CommonGrpcAccessLogConfig {
	return &als.CommonGrpcAccessLogConfig{
		LogName: "audit", GrpcService: agentService(), TransportApiVersion: core.ApiVersion_V3,
		BufferFlushInterval: seconds(0.2), BufferSizeBytes: u32(16 << 10), CustomTags: custom,
	}
}

func auditHTTP(filter *accesslog.AccessLogFilter, custom []*tracing.CustomTag) *accesslog.AccessLog {
	return &accesslog.AccessLog{Name: "envoy.access_loggers.http_grpc", Filter: filter,
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: typed(&als.HttpGrpcAccessLogConfig{CommonConfig: grpcLog(custom)})}}
}

func auditTCP(filter *accesslog.AccessLogFilter, custom []*tracing.CustomTag) *accesslog.AccessLog {
	return &accesslog.AccessLog{Name: "envoy.access_loggers.tcp_grpc", Filter: filter,
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: typed(&als.TcpGrpcAccessLogConfig{CommonConfig: grpcLog(custom)})}}
}

// audited passes what an AUDIT policy selected.
func audited() *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_MetadataFilter{MetadataFilter: &accesslog.MetadataFilter{
		Matcher: &matcher.MetadataMatcher{
			Filter: "envoy.common",
			Path:   []*matcher.MetadataMatcher_PathSegment{{Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: "access_log_hint"}}},
			Value:  &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_BoolMatch{BoolMatch: true}},
		},
		MatchIfKeyNotFound: wrapperspb.Bool(false),
	}}}
}

func when(expression string) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslog.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslog.ExtensionFilter_TypedConfig{TypedConfig: typed(&cel.ExpressionFilter{Expression: expression})}}}}
}

func either(filters ...*accesslog.AccessLogFilter) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_OrFilter{OrFilter: &accesslog.OrFilter{Filters: filters}}}
}

func both(filters ...*accesslog.AccessLogFilter) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_AndFilter{AndFilter: &accesslog.AndFilter{Filters: filters}}}
}

func logType(t data.AccessLogType) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_LogTypeFilter{
		LogTypeFilter: &accesslog.LogTypeFilter{Types: []data.AccessLogType{t}}}}
}

func atEnd(f *accesslog.AccessLogFilter) *accesslog.AccessLogFilter {
	return both(logType(data.AccessLogType_TcpConnectionEnd), f)
}
