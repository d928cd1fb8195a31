package translate

import (
	"net/netip"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	proxyprotocollistener "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
)

// A connection to an address of the cluster's Services for which the proxy has no listener is to a service that its workload may not
// reach, or to none. It is refused: a request with a 403 that says so, anything else by the end of the connection. Which of both it is
// shows in the first bytes, for which only these connections have to wait. So the listener of all that has no listener hands them to a
// second one, which looks at bytes, and tells it their addresses by the PROXY protocol.
const (
	// RefusalListener refuses what is out of reach, and RefusalCluster leads to it.
	RefusalListener = "outOfReach"
	RefusalCluster  = "OutOfReachCluster"
	// RefusalSocket is where they meet, in the pod's own network.
	RefusalSocket = "@bulwark-out-of-reach"

	noCluster = "out-of-reach" // of which there is none, so that connections to it end
)

// refusalText is what a client reads. It has the name by which the client asked, as the proxy knows no service that is out of reach.
const refusalText = "%REQ(:AUTHORITY):256% (%DOWNSTREAM_LOCAL_ADDRESS%) is out of reach of %ENVIRONMENT(" + telemetry.EnvPrincipal + ")%: " +
	"no policy admits this identity to the service, no Service has this address and port, or its Sidecar keeps it from what has no name"

// refusedRanges is the chain for what has an address of the cluster's Services; nil if no such ranges are known.
func refusedRanges(ranges []netip.Prefix) *listener.FilterChain {
	if len(ranges) == 0 {
		return nil
	}
	return outOfReach(&listener.FilterChainMatch{PrefixRanges: cidrs(ranges)})
}

// outOfReach is the chain for what is refused.
func outOfReach(match *listener.FilterChainMatch) *listener.FilterChain {
	return &listener.FilterChain{Name: RefusalListener, FilterChainMatch: match, Filters: []*listener.Filter{tcpProxy(forward(RefusalCluster, RefusalCluster, nil))}}
}

func cidrs(networks []netip.Prefix) (out []*core.CidrRange) {
	for _, n := range networks {
		out = append(out, &core.CidrRange{AddressPrefix: n.Addr().String(), PrefixLen: envoy.U32(uint32(n.Bits()))})
	}
	return out
}

// Refusal is the cluster that leads to the listener of what is refused.
func Refusal() *cluster.Cluster {
	c := static(RefusalCluster, refusalAddress())
	c.CircuitBreakers = generous()
	c.TransportSocket = envoy.TransportSocket("envoy.transport_sockets.upstream_proxy_protocol", &proxyprotocol.ProxyProtocolUpstreamTransport{
		Config: &core.ProxyProtocolConfig{Version: core.ProxyProtocolConfig_V2}, TransportSocket: envoy.RawBuffer()})
	return c
}

func refusalAddress() *core.Address {
	return &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: RefusalSocket}}}
}

// RefusalListenerAtSocket refuses what the cluster leads to it.
func RefusalListenerAtSocket() *listener.Listener {
	l := &listener.Listener{
		Name: RefusalListener, Address: refusalAddress(), TrafficDirection: core.TrafficDirection_OUTBOUND, PerConnectionBufferLimitBytes: envoy.U32(1 << 20),
		ListenerFilters: []*listener.ListenerFilter{envoy.ListenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocollistener.ProxyProtocol{})},
		FilterChains: []*listener.FilterChain{
			{Name: "http", FilterChainMatch: &listener.FilterChainMatch{ApplicationProtocols: httpProtocols}, Filters: []*listener.Filter{refuseRequests()}},
			{Name: "tcp", Filters: []*listener.Filter{tcpProxy(forward(noCluster, noCluster, []*accesslog.AccessLog{telemetry.OutOfReachConnections()}))}},
		},
	}
	sniff(l)
	return l
}

// refuseRequests answers each request. A connection ends with its first answer, so that a client whom a policy admits meanwhile does not
// go on asking here.
func refuseRequests() *listener.Filter {
	nobody := envoy.HTTPFilter("envoy.filters.http.rbac", &rbacfilter.RBAC{Rules: rbac.Nobody()})
	logs := append(telemetry.OutboundRequests("", ""), telemetry.OutOfReachRequests(nil))
	m := withRoutes(connectionManager("out_of_reach", []*hcm.HttpFilter{nobody}, logs), routes(compile.Table{Name: noCluster}))
	m.CommonHttpProtocolOptions.MaxRequestsPerConnection = envoy.U32(1)
	m.LocalReplyConfig = refusing(failed()) // also of what is no proper request
	return httpManager(m)
}

// refusedNow answers requests on connections that a client opened while it could reach the service: their listener drains, and has no
// cluster any more.
func refusedNow(m *hcm.HttpConnectionManager) *hcm.HttpConnectionManager {
	m.AccessLog = append(m.AccessLog, telemetry.OutOfReachRequests(withoutCluster()))
	m.LocalReplyConfig = refusing(withoutCluster())
	m.LocalReplyConfig.Mappers = append(m.LocalReplyConfig.Mappers, unread()...)
	return m
}

// refusing makes of some of a proxy's own answers the one that says that the service is out of reach.
func refusing(which *accesslog.AccessLogFilter) *hcm.LocalReplyConfig {
	return &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{{Filter: which, StatusCode: envoy.U32(403), BodyFormatOverride: envoy.Format(refusalText)}}}
}

func failed() *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslog.StatusCodeFilter{
		Comparison: &accesslog.ComparisonFilter{Op: accesslog.ComparisonFilter_GE, Value: &core.RuntimeUInt32{DefaultValue: 400, RuntimeKey: "unused"}}}}}
}

// withoutCluster passes requests to a cluster that there is not.
func withoutCluster() *accesslog.AccessLogFilter { return envoy.Flagged("NC") }
