package telemetry

import (
	"fmt"
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	otel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	otlp "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// ACCESSLOG.md says what the agent can rely on; keep it true.

// attribute is a part of an entry, by a format string of Envoy.
type attribute struct{ key, format string }

// inboundEntry are the attributes of every entry of a server's proxy, of some kind.
func inboundEntry(kind string, more ...attribute) []attribute {
	return append([]attribute{{"bulwark.direction", "inbound"}, {"bulwark.kind", kind}, {"bulwark.source_principal", "%DOWNSTREAM_PEER_URI_SAN%"},
		{"bulwark.tls_version", "%DOWNSTREAM_TLS_VERSION%"}, sourceAddress, localAddress, responseFlags}, more...)
}

func inboundRequest() []attribute {
	const enforced = "%%DYNAMIC_METADATA(envoy.filters.http.rbac:%senforced_effective_policy_id)%%"
	return inboundEntry("http", slices.Concat(request(), []attribute{remoteAddress, {"protocol", "%PROTOCOL%"}, {"response_code_details", "%RESPONSE_CODE_DETAILS%"},
		{"bulwark.request_principal", fmt.Sprintf("%[1]s:iss)%%/%[1]s:sub)%%", "%DYNAMIC_METADATA("+rbac.JWTFilter+":"+rbac.Payload)},
		{"bulwark.custom_policy", fmt.Sprintf(askedPolicy, "http")},
		{"bulwark.deny_policy", fmt.Sprintf(enforced, rbac.Prefix(authz.Deny))}, {"bulwark.allow_policy", fmt.Sprintf(enforced, rbac.Prefix(authz.Allow))}},
		onTrial(httpPolicies))...)
}

// askedPolicy is the rule by which an external authorizer was asked, the last one if several were.
const askedPolicy = "%%DYNAMIC_METADATA(envoy.filters.%s.rbac:" + rbac.AskedKey + ")%%"

// inboundConnection is of one over TLS or in plaintext, where tls_inspector would have it that a handshake failed.
func inboundConnection(mutual bool) []attribute {
	out := inboundEntry("tcp", append([]attribute{remoteAddress, {"termination_details", "%CONNECTION_TERMINATION_DETAILS%"}, {"response_code_details", "%RESPONSE_CODE_DETAILS%"}, {"bulwark.custom_policy", fmt.Sprintf(askedPolicy, "network")},
		// With bytes of the application the handshake is over, which Envoy does not say otherwise.
		{"bulwark.received", "%BYTES_RECEIVED%"},
		{"bulwark.allow_policy", tried(tcpPolicies, rbac.Prefix(authz.Allow), ruleOnTrial)}}, onTrial(tcpPolicies)...)...)
	if mutual {
		out = append(out, downstreamFailure)
	}
	return out
}

// Where the filters of policies leave what they have found, and as what, if their rules decide nothing.
const (
	httpPolicies   = "envoy.filters.http.rbac"
	tcpPolicies    = "envoy.filters.network.rbac"
	verdictOnTrial = "shadow_engine_result"
	ruleOnTrial    = "shadow_effective_policy_id"
)

func tried(by, prefix, what string) string {
	return "%DYNAMIC_METADATA(" + by + ":" + prefix + what + ")%"
}

// onTrial is what the policies on trial said, as far as it takes to know what all would decide together.
func onTrial(by string) []attribute {
	return []attribute{
		{"bulwark.trial_deny_policy", tried(by, rbac.TrialPrefix(authz.Deny), ruleOnTrial)},
		{"bulwark.trial_allow_policy", tried(by, rbac.TrialPrefix(authz.Allow), ruleOnTrial)},
		{"bulwark.trial_allow", tried(by, rbac.TrialPrefix(authz.Allow), verdictOnTrial)},
	}
}

func refusedConnection() []attribute { return inboundEntry("refused", downstreamFailure) }

// outboundEntry are the attributes of every entry of a client's proxy about a server.
func outboundEntry(kind, service string, more ...attribute) []attribute {
	return append([]attribute{{"bulwark.direction", "outbound"}, {"bulwark.kind", kind}, {"bulwark.destination_service", service},
		{"bulwark.destination_principal", "%UPSTREAM_PEER_URI_SAN%"}, {"upstream_address", "%UPSTREAM_HOST%"}, // which is known also where the handshake failed
		{"upstream_failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"}, sourceAddress, localAddress, responseFlags}, more...)
}

// outOfReach is an entry about what a client's proxy has refused. Whose the connection is says the PROXY protocol.
func outOfReach(kind string, more ...attribute) []attribute {
	return append([]attribute{{"bulwark.direction", "outbound"}, {"bulwark.kind", kind}, {"bulwark.out_of_reach", "true"},
		{"bulwark.source_address", "%DOWNSTREAM_REMOTE_ADDRESS%"}, localAddress, responseFlags}, more...)
}

var (
	sourceAddress     = attribute{"source_address", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"}
	remoteAddress     = attribute{"bulwark.remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"} // of the client for whom the peer is; of what is refused, it is what anybody claims
	localAddress      = attribute{"local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"}
	responseFlags     = attribute{"response_flags", "%RESPONSE_FLAGS%"}
	downstreamFailure = attribute{"downstream_failure", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"}
)

// request is what a client said and heard. A client chooses some of it, and a batch that outgrows Envoy's buffer for retries is not
// sent again: hence the limits.
func request() []attribute {
	return []attribute{{"method", "%REQ(:METHOD):256%"}, {"path", fmt.Sprintf("%%REQ(:PATH):%d%%", telemetryv1.MaxPath)}, {"authority", "%REQ(:AUTHORITY):4096%"},
		{"request_id", "%REQ(X-REQUEST-ID):256%"}, {"response_code", "%RESPONSE_CODE%"}}
}

// audit sends entries in calls of their own, which Envoy repeats while the agent is away. It does not repeat what it wrote
// to a stream, which the loggers http_grpc and tcp_grpc do.
func audit(filter *accesslog.AccessLogFilter, entry []attribute) *accesslog.AccessLog {
	attributes := &otlp.KeyValueList{}
	for _, a := range entry {
		attributes.Values = append(attributes.Values, &otlp.KeyValue{Key: a.key, Value: &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: a.format}}})
	}
	to := envoy.GRPCService(mesh.AgentClusterName)
	to.RetryPolicy = &core.RetryPolicy{
		RetryOn:      "connect-failure,refused-stream,reset,cancelled,unavailable",
		NumRetries:   envoy.U32(120), // with the pauses, about two minutes
		RetryBackOff: &core.BackoffStrategy{BaseInterval: envoy.Seconds(0.1), MaxInterval: envoy.Seconds(2)},
	}
	return &accesslog.AccessLog{Name: "envoy.access_loggers.open_telemetry", Filter: filter,
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: envoy.Typed(&otel.OpenTelemetryAccessLogConfig{
			LogName: "audit", GrpcService: to, DisableBuiltinLabels: true,
			BufferFlushInterval: envoy.Seconds(0.2), BufferSizeBytes: envoy.U32(16 << 10), Attributes: attributes,
		})}}
}
