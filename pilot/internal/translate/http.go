package translate

import (
	"fmt"
	"maps"
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutation "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	preservecase "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
)

// connectionManager is what every HTTP connection has in common: bounds, WebSocket, and no opinion about an application's
// own timeouts. Logs are of requests, attempts of each try to have one answered.
func connectionManager(statPrefix string, filters []*hcm.HttpFilter, logs []*accesslog.AccessLog, attempts ...*accesslog.AccessLog) *hcm.HttpConnectionManager {
	return &hcm.HttpConnectionManager{
		StatPrefix: statPrefix, CodecType: hcm.HttpConnectionManager_AUTO, AccessLog: logs,
		HttpFilters: append(filters, envoy.HTTPFilter("envoy.filters.http.router", &router.Router{
			SuppressEnvoyHeaders: true, UpstreamLog: attempts,
			DynamicStats: envoy.No(), // counts of each status, whose names Envoy puts together for each request to find that nobody keeps them
		})),
		UseRemoteAddress: envoy.No(), SkipXffAppend: true, GenerateRequestId: envoy.Yes(),
		ServerHeaderTransformation: hcm.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:             upgrades(),
		NormalizePath:              envoy.No(),
		Proxy_100Continue:          true,
		MaxRequestHeadersKb:        envoy.U32(maxHeadersKb), RequestHeadersTimeout: envoy.Seconds(60), // whoever sends a head bit by bit never gets to the application, which would give up
		StreamIdleTimeout:         envoy.Seconds(0), // a call that says nothing for hours is the application's affair, and a timer would be set anew for each of its parts
		CommonHttpProtocolOptions: &core.HttpProtocolOptions{MaxHeadersCount: envoy.U32(maxHeaders), IdleTimeout: envoy.Seconds(0)},
		Http2ProtocolOptions: &core.Http2ProtocolOptions{
			MaxConcurrentStreams: envoy.U32(1024), AllowConnect: false,
			InitialStreamWindowSize: envoy.U32(1 << 18), InitialConnectionWindowSize: envoy.U32(1 << 20),
			// A request that is malformed ends itself, not the others of its connection, which a proxy shares among its clients.
			OverrideStreamErrorOnInvalidHttpMessage: envoy.Yes(),
		},
		HttpProtocolOptions: http1(),
	}
}

// Applications are sent as much as a server takes by itself, and no more: 96 KB and 1,000 lines, with room for what the proxies add.
const (
	maxHeadersKb = 128
	maxHeaders   = 1024
)

// unread has the proxy's own answer to a request or for an answer that it cannot read say why.
func unread() []*hcm.ResponseMapper {
	head := fmt.Sprintf("at most %d KB and %d lines", maxHeadersKb, maxHeaders)
	return []*hcm.ResponseMapper{
		{Filter: telemetry.UnreadAnswer(), BodyFormatOverride: envoy.Format("the server's answer is no HTTP that the proxy reads: its head is malformed or too long (" + head + ") (%RESPONSE_CODE_DETAILS%)")},
		{Filter: telemetry.LongRequest(), BodyFormatOverride: envoy.Format("the head of the request is too long for the proxy (" + head + ")")},
	}
}

// http1 passes on what it does not have to know: names as they are written, reasons, trailers, methods.
func http1() *core.Http1ProtocolOptions {
	return &core.Http1ProtocolOptions{
		AcceptHttp_10: true, DefaultHostForHttp_10: "unknown", EnableTrailers: true, HeaderKeyFormat: asWritten(),
		AllowCustomMethods: true, IgnoreHttp_11Upgrade: []*matcher.StringMatcher{envoy.Pattern(unlikeAll(upgradeTokens))},
	}
}

// asWritten keeps the case of names, and the reason in an answer's first line.
func asWritten() *core.Http1ProtocolOptions_HeaderKeyFormat {
	return &core.Http1ProtocolOptions_HeaderKeyFormat{HeaderFormat: &core.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
		StatefulFormatter: envoy.Extension("preserve_case", &preservecase.PreserveCaseFormatterConfig{ForwardReasonPhrase: true})}}
}

// upgradeTokens are what a connection may go on with, as far as proxies have heard of it, in lower case: WebSocket; what kubectl, container engines, tunnels and
// private networks use. Envoy would refuse all others. They are ignored, as a server is free to do that has not heard of them; so are the offers to go on in
// TLS or in HTTP/2, of which the proxies could not read what follows. What begins with the same two letters as one of these and is another is refused (403).
var upgradeTokens = []string{"websocket", "tcp", "spdy/3.1", "raw", "derp", "tailscale-control-protocol", "ts2021", "teleport-alpn", "teleport-alpn-ping", "ptth/1.0"}

// upgrades are those, and CONNECT, which routes take or not.
func upgrades() (out []*hcm.HttpConnectionManager_UpgradeConfig) {
	for _, token := range append([]string{"CONNECT"}, upgradeTokens...) {
		out = append(out, &hcm.HttpConnectionManager_UpgradeConfig{UpgradeType: token})
	}
	return out
}

// unlikeAll is an expression for the texts that do not begin as one of some words does. Each listener of a service has one of its own in Envoy's memory, where an expression for all
// other texts, which goes through each word to its end, would take 90 kB: so it looks at two letters.
func unlikeAll(words []string) string {
	second := map[byte]string{} // the second letters by the first one
	for _, w := range words {
		second[w[0]] += w[1:2]
	}
	first, branches := "", ""
	for _, c := range slices.Sorted(maps.Keys(second)) {
		first += string(c)
		branches += "|" + string(c) + "[^" + second[c] + "]"
	}
	return "(?is:(?:[^" + first + "]" + branches + ").*)"
}

// early are changes to a request's head before anything of it is looked at.
func early(changes ...*mutation.HeaderMutation) []*core.TypedExtensionConfig {
	return []*core.TypedExtensionConfig{envoy.Extension("envoy.http.early_header_mutation.header_mutation", &earlymutation.HeaderMutation{Mutations: changes})}
}

// overwritten is a header that has this value whatever a client says in it.
func overwritten(header, format string) *mutation.HeaderMutation {
	return &mutation.HeaderMutation{Action: &mutation.HeaderMutation_Append{Append: &core.HeaderValueOption{
		Header: &core.HeaderValue{Key: header, Value: format}, AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}}}
}

func withRoutes(m *hcm.HttpConnectionManager, rc *route.RouteConfiguration) *hcm.HttpConnectionManager {
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: rc}
	return m
}

// toApplication tells the application the client's certificate, and no one else's word about it. Paths go on as they were sent; where the
// workload asks for it, they are made canonical before a policy sees them, and go on as the policies saw them.
func toApplication(m *hcm.HttpConnectionManager, c compile.Class) *hcm.HttpConnectionManager {
	m.StreamIdleTimeout, m.CommonHttpProtocolOptions.IdleTimeout = durationpb.New(c.IdleTimeout), durationpb.New(c.IdleTimeout)
	if c.NormalizePaths {
		m.NormalizePath = envoy.Yes()
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
	m.LocalReplyConfig = &hcm.LocalReplyConfig{Mappers: unread()}
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	return m
}

func httpManager(m *hcm.HttpConnectionManager) *listener.Filter {
	return envoy.NetworkFilter("envoy.filters.network.http_connection_manager", m)
}
