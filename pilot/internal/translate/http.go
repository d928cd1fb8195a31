package translate

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
)

// connectionManager is what every HTTP connection has in common: bounds, WebSocket, and no opinion about an application's
// own timeouts. Logs are of requests, attempts of each try to have one answered.
func connectionManager(statPrefix string, filters []*hcm.HttpFilter, logs []*accesslog.AccessLog, attempts ...*accesslog.AccessLog) *hcm.HttpConnectionManager {
	return &hcm.HttpConnectionManager{
		StatPrefix: statPrefix, CodecType: hcm.HttpConnectionManager_AUTO, AccessLog: logs,
		HttpFilters:      append(filters, envoy.HTTPFilter("envoy.filters.http.router", &router.Router{SuppressEnvoyHeaders: true, UpstreamLog: attempts})),
		UseRemoteAddress: envoy.No(), SkipXffAppend: true, GenerateRequestId: envoy.Yes(),
		ServerHeaderTransformation: hcm.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:             []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		MaxRequestHeadersKb:        envoy.U32(64), RequestHeadersTimeout: envoy.Seconds(60),
		StreamIdleTimeout:         envoy.Seconds(0), // a call that says nothing for hours is the application's affair, and a timer would be set anew for each of its parts
		CommonHttpProtocolOptions: &core.HttpProtocolOptions{MaxHeadersCount: envoy.U32(200)},
		Http2ProtocolOptions: &core.Http2ProtocolOptions{
			MaxConcurrentStreams: envoy.U32(1024), AllowConnect: false,
			InitialStreamWindowSize: envoy.U32(1 << 18), InitialConnectionWindowSize: envoy.U32(1 << 20),
			// A request that is malformed ends itself, not the others of its connection, which a proxy shares among its clients.
			OverrideStreamErrorOnInvalidHttpMessage: envoy.Yes(),
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
	m.NormalizePath = envoy.Yes()
	m.MergeSlashes = true
	m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD
	m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	return m
}

func httpManager(m *hcm.HttpConnectionManager) *listener.Filter {
	return envoy.NetworkFilter("envoy.filters.network.http_connection_manager", m)
}
