package translate

import (
	"fmt"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	cel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	otel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	tracing "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	otlp "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// ACCESSLOG.md says what the agent can rely on; keep it true.

const (
	deniedRequest    = `response.code_details.startsWith('rbac_access_denied')`
	deniedConnection = `connection.termination_details.startsWith('rbac_access_denied')`
	// What tls_inspector says of a client that speaks plaintext is no failure, where a chain takes it.
	refusedInbound = `response.code_details == 'filter_chain_not_found' || connection.transport_failure_reason != '' && xds.filter_chain_name.startsWith('tls-')`
	failedUpstream = `upstream.transport_failure_reason.contains('TLS_error')`
)

func tags(pairs ...string) []*tracing.CustomTag {
	var out []*tracing.CustomTag
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, &tracing.CustomTag{Tag: "bulwark." + pairs[i], Type: &tracing.CustomTag_Value{Value: pairs[i+1]}})
	}
	return out
}

func inboundTags(kind string) []*tracing.CustomTag {
	out := tags("direction", "inbound", "kind", kind,
		"source_principal", "%DOWNSTREAM_PEER_URI_SAN%", "destination_principal", "%DOWNSTREAM_LOCAL_URI_SAN%",
		"tls_version", "%DOWNSTREAM_TLS_VERSION%", "destination_port", "%DOWNSTREAM_LOCAL_PORT%")
	switch kind {
	case "tcp":
		// With bytes of the application the handshake is over, which Envoy does not say otherwise.
		out = append(out, tags("received", "%BYTES_RECEIVED%")...)
		out = append(out, tags("allow_policy", fmt.Sprintf("%%DYNAMIC_METADATA(envoy.filters.network.rbac:%sshadow_effective_policy_id)%%", statPrefix[authz.Allow]))...)
	case "http":
		const rbac = "%%DYNAMIC_METADATA(envoy.filters.http.rbac:%senforced_effective_policy_id)%%"
		for _, action := range []authz.Action{authz.Audit, authz.Deny, authz.Allow} {
			name := statPrefix[action] + "policy"
			out = append(out, tags(name, fmt.Sprintf(rbac, statPrefix[action]))...)
		}
	}
	return out
}

func outboundTags(kind, service string) []*tracing.CustomTag {
	return tags("direction", "outbound", "kind", kind, "destination_principal", "%UPSTREAM_PEER_URI_SAN%",
		"destination_service", service, "destination_port", "%DOWNSTREAM_LOCAL_PORT%")
}

// attributes are what an entry says beside its tags. A client chooses some of these, and a batch that outgrows Envoy's
// buffer for retries is not sent again: hence the limits.
func attributes(custom []*tracing.CustomTag) *otlp.KeyValueList {
	out := &otlp.KeyValueList{}
	add := func(key, format string) {
		out.Values = append(out.Values, &otlp.KeyValue{Key: key, Value: &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: format}}})
	}
	add("source_address", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%")
	add("local_address", "%DOWNSTREAM_LOCAL_ADDRESS%")
	add("upstream_address", "%UPSTREAM_HOST%") // which is known also where the handshake failed
	add("protocol", "%PROTOCOL%")
	add("method", "%REQ(:METHOD):256%")
	add("path", "%REQ(:PATH):4096%")
	add("authority", "%REQ(:AUTHORITY):4096%")
	add("request_id", "%REQ(X-REQUEST-ID):256%")
	add("response_code", "%RESPONSE_CODE%")
	add("response_code_details", "%RESPONSE_CODE_DETAILS%")
	add("response_flags", "%RESPONSE_FLAGS%")
	add("termination_details", "%CONNECTION_TERMINATION_DETAILS%")
	add("upstream_failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%")
	add("downstream_failure", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%")
	for _, t := range custom {
		add(t.GetTag(), t.GetValue())
	}
	return out
}

// audit sends entries in calls of their own, which Envoy repeats while the agent is away. It does not repeat what it wrote
// to a stream, which the loggers http_grpc and tcp_grpc do.
func audit(filter *accesslog.AccessLogFilter, custom []*tracing.CustomTag) *accesslog.AccessLog {
	to := agentService()
	to.RetryPolicy = &core.RetryPolicy{
		RetryOn:      "connect-failure,refused-stream,reset,cancelled,unavailable",
		NumRetries:   u32(120), // with the pauses, about two minutes
		RetryBackOff: &core.BackoffStrategy{BaseInterval: seconds(0.1), MaxInterval: seconds(2)},
	}
	return &accesslog.AccessLog{Name: "envoy.access_loggers.open_telemetry", Filter: filter,
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: envoy.Typed(&otel.OpenTelemetryAccessLogConfig{
			LogName: "audit", GrpcService: to, DisableBuiltinLabels: true,
			BufferFlushInterval: seconds(0.2), BufferSizeBytes: u32(16 << 10), Attributes: attributes(custom),
		})}}
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
		ConfigType: &accesslog.ExtensionFilter_TypedConfig{TypedConfig: envoy.Typed(&cel.ExpressionFilter{Expression: expression})}}}}
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
