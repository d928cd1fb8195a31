package telemetry

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	cel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Expressions are dear, so that what is cheap to ask comes before those that are asked of each request.
const (
	deniedRequest    = `response.code_details.startsWith('rbac_access_denied') || response.code_details.startsWith('jwt_authn_access_denied')`
	deniedConnection = `connection.termination_details.startsWith('rbac_access_denied')`
	// What tls_inspector says of a client that speaks plaintext is no failure, where a chain takes it.
	refusedInbound = `response.code_details == 'filter_chain_not_found' || connection.transport_failure_reason != '' && xds.filter_chain_name.startsWith('tls-')`
	failedUpstream = `upstream.transport_failure_reason.contains('TLS_error')`
)

// audited passes what an AUDIT policy selected.
func audited() *accesslog.AccessLogFilter {
	return found("envoy.common", "access_log_hint", &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_BoolMatch{BoolMatch: true}})
}

// triedOut passes what the policies on trial would deny, and is not denied as it is. What is denied, and might not be, is logged for that. By is who has decided.
func triedOut(by string) *accesslog.AccessLogFilter {
	denied := &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_StringMatch{StringMatch: envoy.Exact("denied")}}
	return either(found(by, rbac.TrialPrefix(authz.Deny)+verdictOnTrial, denied), found(by, rbac.TrialPrefix(authz.Allow)+verdictOnTrial, denied))
}

// found passes what a filter has left something of.
func found(by, key string, what *matcher.ValueMatcher) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_MetadataFilter{MetadataFilter: &accesslog.MetadataFilter{
		Matcher: &matcher.MetadataMatcher{
			Filter: by, Path: []*matcher.MetadataMatcher_PathSegment{{Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: key}}}, Value: what},
		MatchIfKeyNotFound: envoy.No(),
	}}}
}

func when(expression string) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslog.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslog.ExtensionFilter_TypedConfig{TypedConfig: envoy.Typed(&cel.ExpressionFilter{Expression: expression})}}}}
}

// deniedByAuthorizer passes what an external authorizer has denied, with whatever status, or has not answered about.
func deniedByAuthorizer() *accesslog.AccessLogFilter { return envoy.Flagged("UAEX") }

// deniedByPolicy passes requests that a policy denied, or whose token is refused. What an application answers seldom is a denial of its own, as a status of HTTP or of gRPC, in
// which a denied call of gRPC has it.
func deniedByPolicy() *accesslog.AccessLogFilter {
	return both(&accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_GrpcStatusFilter{GrpcStatusFilter: &accesslog.GrpcStatusFilter{
		Statuses: []accesslog.GrpcStatusFilter_Status{accesslog.GrpcStatusFilter_PERMISSION_DENIED, accesslog.GrpcStatusFilter_UNAUTHENTICATED}}}}, when(deniedRequest))
}

// UnreadAnswer passes requests whose answer was no HTTP that the proxy reads, or had too long a head.
func UnreadAnswer() *accesslog.AccessLogFilter { return envoy.Flagged("UPE") }

// unreadRequest passes what was no HTTP itself, or had too long a head.
func unreadRequest() *accesslog.AccessLogFilter { return envoy.Flagged("DPE") }

// LongRequest passes, of those that the proxy answers itself, the requests that had too long a head.
func LongRequest() *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslog.StatusCodeFilter{
		Comparison: &accesslog.ComparisonFilter{Op: accesslog.ComparisonFilter_EQ, Value: &core.RuntimeUInt32{DefaultValue: 431, RuntimeKey: "unused"}}}}}
}

// Unproven passes requests that were not answered as the server has not proved who it is.
func Unproven() *accesslog.AccessLogFilter { return impostor() }

// impostor passes what failed because of the server's certificate.
func impostor() *accesslog.AccessLogFilter { return both(envoy.Flagged("UF"), when(failedUpstream)) }

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

// atEnd passes what f passes of a TCP connection, once: when it has ended.
func atEnd(f *accesslog.AccessLogFilter) *accesslog.AccessLogFilter {
	return both(logType(data.AccessLogType_TcpConnectionEnd), f)
}
