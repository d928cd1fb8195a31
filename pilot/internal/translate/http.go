package translate

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// connectionManager is what every HTTP connection has in common: bounds, WebSocket, and no opinion about an application's
// own timeouts. Logs are of requests, attempts of each try to have one answered.
func connectionManager(statPrefix string, filters []*hcm.HttpFilter, logs []*accesslog.AccessLog, attempts ...*accesslog.AccessLog) *hcm.HttpConnectionManager {
	return &hcm.HttpConnectionManager{
		StatPrefix: statPrefix, CodecType: hcm.HttpConnectionManager_AUTO, AccessLog: logs,
		HttpFilters:      append(filters, httpFilter("envoy.filters.http.router", &router.Router{SuppressEnvoyHeaders: true, UpstreamLog: attempts})),
		UseRemoteAddress: no(), SkipXffAppend: true, GenerateRequestId: yes(),
		ServerHeaderTransformation: hcm.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:             []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		MaxRequestHeadersKb:        u32(64), StreamIdleTimeout: seconds(3600), RequestHeadersTimeout: seconds(60),
		CommonHttpProtocolOptions: &core.HttpProtocolOptions{MaxHeadersCount: u32(200)},
		Http2ProtocolOptions: &core.Http2ProtocolOptions{
			MaxConcurrentStreams: u32(1024), AllowConnect: false,
			InitialStreamWindowSize: u32(1 << 18), InitialConnectionWindowSize: u32(1 << 20),
			// A request that is malformed ends itself, not the others of its connection, which a proxy shares among its clients.
			OverrideStreamErrorOnInvalidHttpMessage: yes(),
		},
		HttpProtocolOptions: &core.Http1ProtocolOptions{AcceptHttp_10: true, DefaultHostForHttp_10: "unknown"},
	}
}

func withRoutes(m *hcm.HttpConnectionManager, rc *route.RouteConfiguration) *hcm.HttpConnectionManager {
	m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: rc}
	return m
}

// normalized makes paths canonical before a policy sees them, and passes on what the policies saw: slashes merged, escaped
// slashes and dot segments resolved. The client's certificate is told to the application, and no one else's word about it.
func normalized(m *hcm.HttpConnectionManager) *hcm.HttpConnectionManager {
	m.NormalizePath = yes()
	m.MergeSlashes = true
	m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	return m
}

func httpManager(m *hcm.HttpConnectionManager) *listener.Filter {
	return networkFilter("envoy.filters.network.http_connection_manager", m)
}
