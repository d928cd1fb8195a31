package translate

import (
	"fmt"
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
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
		Http2ProtocolOptions:      ofClients(),
		HttpProtocolOptions:       http1(),
	}
}

// ofOwnApplication is for the connections of the proxy's own application, which can harm nobody but itself: it may be as slow as it likes, and have thousands of streams open in one
// connection, as those who watch do.
func ofOwnApplication(m *hcm.HttpConnectionManager) *hcm.HttpConnectionManager {
	m.EarlyHeaderMutationExtensions = marked()
	m.RequestHeadersTimeout = nil
	m.Http2ProtocolOptions.MaxConcurrentStreams = envoy.U32(1 << 20)
	return m
}

// http2 is what both sides of a proxy have in common. Envoy ends a connection, with all that others have open in it, for what it takes for a flood of frames, and its limits are lower
// than what applications do: some write frames with nothing in them when they flush; and when a server with thousands of streams of one client ends, or a client that is sent small messages does
// not read, thousands of frames wait to be sent on. These limits still bound what a hostile peer can have a proxy keep, to a few megabytes.
func http2() *core.Http2ProtocolOptions {
	return &core.Http2ProtocolOptions{
		MaxOutboundFrames: envoy.U32(1 << 16), MaxOutboundControlFrames: envoy.U32(1 << 14), MaxConsecutiveInboundFramesWithEmptyPayload: envoy.U32(1 << 10),
	}
}

// ofServers is for the connections that a proxy makes, which its clients share. nghttp2, by which Envoy and others read HTTP/2, ends a connection for some 1,000 streams that are reset at
// once, as they are when a client with so many ends: there are never as many in one.
func ofServers() *core.Http2ProtocolOptions {
	o := http2()
	o.MaxConcurrentStreams = envoy.U32(512)
	return o
}

// ofClients is what a proxy's clients may do.
func ofClients() *core.Http2ProtocolOptions {
	o := http2()
	o.MaxConcurrentStreams = envoy.U32(1024)
	o.InitialStreamWindowSize, o.InitialConnectionWindowSize = envoy.U32(1<<18), envoy.U32(1<<20)
	o.OverrideStreamErrorOnInvalidHttpMessage = envoy.Yes() // a request that is malformed ends itself, not the others of its connection, which a proxy shares among its clients
	return o
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
		AllowCustomMethods: true, IgnoreHttp_11Upgrade: ignored(),
	}
}

// asWritten keeps the case of names, and the reason in an answer's first line.
func asWritten() *core.Http1ProtocolOptions_HeaderKeyFormat {
	return &core.Http1ProtocolOptions_HeaderKeyFormat{HeaderFormat: &core.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
		StatefulFormatter: envoy.Extension("preserve_case", &preservecase.PreserveCaseFormatterConfig{ForwardReasonPhrase: true})}}
}

// ignored are the protocols in which proxies do not offer to go on, whatever a client does: versions of TLS and of HTTP, of which they could not judge what follows. Envoy
// takes them out of the Upgrade header, and the header away if nothing is left, as a server may that has not heard of them.
func ignored() (out []*matcher.StringMatcher) {
	for _, beginning := range []string{"tls", "http", "h2"} {
		out = append(out, &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: beginning}, IgnoreCase: true})
	}
	return out
}

// All other offers of a client to go on in another protocol are passed on. Envoy passes on those alone whose protocol its configuration names. So what the Upgrade header
// says is noted in one of the proxy's own, and replaced by a word that is configured, before Envoy looks for it; and is put back before policies look at it, or a server.
// The note replaces what a client says in that header, which a server never gets.
const (
	upgradeHeader = "upgrade"
	offerHeader   = "x-bulwark-upgrade"
	offered       = "offered"
)

// notedOffer does so. The word has the length of the request's body behind it, or its transfer coding, so that Envoy refuses an offer with a body (403): it reads what
// follows an offer as bytes of that protocol, and holds them back until the server accepts, which may wait for the body.
func notedOffer() []*mutation.HeaderMutation {
	return []*mutation.HeaderMutation{overwritten(offerHeader, "%REQ("+upgradeHeader+")%"), mutated(replaced(upgradeHeader, offered+"%REQ(CONTENT-LENGTH)%%REQ(TRANSFER-ENCODING)%"))}
}

// offer is the header as the client sent it.
func offer() *core.HeaderValueOption { return replaced(upgradeHeader, "%REQ("+offerHeader+")%") }

// upgrades are CONNECT, which routes take or not, and offers without a body, which go through the manager's filters or through these.
func upgrades(filters ...*hcm.HttpFilter) []*hcm.HttpConnectionManager_UpgradeConfig {
	return []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}, {UpgradeType: offered, Filters: filters}, {UpgradeType: offered + "0", Filters: filters}}
}

// seeingOffers has the manager's filters see offers as clients sent them: those that come are put back first. Other requests have no part in it.
func seeingOffers(m *hcm.HttpConnectionManager) *hcm.HttpConnectionManager {
	first := envoy.HTTPFilter("envoy.filters.http.header_mutation", &headermutation.HeaderMutation{Mutations: &headermutation.Mutations{
		RequestMutations: append([]*mutation.HeaderMutation{mutated(offer())}, without(offerHeader)...)}})
	m.UpgradeConfigs = upgrades(append([]*hcm.HttpFilter{first}, m.GetHttpFilters()...)...)
	return m
}

// marked notes what is to be known later of a request as it came, and more.
func marked(more ...*mutation.HeaderMutation) []*core.TypedExtensionConfig {
	return early(slices.Concat([]*mutation.HeaderMutation{notedForm()}, notedOffer(), more)...)
}

// early are changes to a request's head before anything of it is looked at.
func early(changes ...*mutation.HeaderMutation) []*core.TypedExtensionConfig {
	return []*core.TypedExtensionConfig{envoy.Extension("envoy.http.early_header_mutation.header_mutation", &earlymutation.HeaderMutation{Mutations: changes})}
}

// overwritten is a header that has this value whatever a client says in it.
func overwritten(header, format string) *mutation.HeaderMutation {
	out := replaced(header, format)
	out.AppendAction = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	return mutated(out)
}

// replaced gives a header another value where there is one.
func replaced(header, format string) *core.HeaderValueOption {
	return &core.HeaderValueOption{Header: &core.HeaderValue{Key: header, Value: format}, AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS}
}

func mutated(header *core.HeaderValueOption) *mutation.HeaderMutation {
	return &mutation.HeaderMutation{Action: &mutation.HeaderMutation_Append{Append: header}}
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
