package translate

import (
	"fmt"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"

	xdstype "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Names of listeners that every proxy has.
const (
	VirtualOutbound = "virtualOutbound"
	VirtualInbound  = "virtualInbound"
	HealthListener  = "health"
	StatsListener   = "prometheus_stats"
)

// OutboundListener takes every connection of the application and hands it to the listener of its original destination, or
// lets it through where no service is known.
func OutboundListener() *listener.Listener {
	return &listener.Listener{
		Name: VirtualOutbound, Address: address(compile.AnyAddress, mesh.OutboundPort), UseOriginalDst: yes(),
		TrafficDirection:              core.TrafficDirection_OUTBOUND,
		ListenerFilters:               []*listener.ListenerFilter{listenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{})},
		PerConnectionBufferLimitBytes: u32(1 << 20),
		FilterChains: []*listener.FilterChain{{Name: "passthrough",
			Filters: []*listener.Filter{tcpProxy(forward(PassthroughCluster, PassthroughCluster, connectionMetrics(sourceReport())))}}},
	}
}

// HTTPListener takes the connections to a port that HTTP services share; its routes are those of the proxy's namespace.
func HTTPListener(port uint32) *listener.Listener {
	return outbound(compile.AnyAddress, port, &listener.FilterChain{Name: "http", Filters: []*listener.Filter{outboundHTTP(port)}})
}

// ServiceListener takes the connections to one address of a service that does not speak HTTP, or may not.
func ServiceListener(ip string, p *compile.ServicePort) *listener.Listener {
	tcp := tcpProxy(forward(p.Cluster(), p.Cluster(), outboundTCPLogs(p)))
	if p.Protocol != registry.Auto {
		return outbound(ip, p.Number, &listener.FilterChain{Name: "tcp", Filters: []*listener.Filter{tcp}})
	}
	l := outbound(ip, p.Number,
		&listener.FilterChain{Name: "http", FilterChainMatch: &listener.FilterChainMatch{ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}},
			Filters: []*listener.Filter{oneServiceHTTP(p)}},
		&listener.FilterChain{Name: "tcp", Filters: []*listener.Filter{opaque(), tcp}})
	sniff(l)
	return l
}

// sniff looks at a client's first bytes, but on ports whose protocol is declared. A client that waits for the server to
// speak is taken for TCP, in plaintext, after a while.
func sniff(l *listener.Listener, declared ...uint32) {
	f := listenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{})
	var ports []*listener.ListenerFilterChainMatchPredicate
	for _, p := range declared {
		ports = append(ports, &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &xdstype.Int32Range{Start: int32(p), End: int32(p) + 1}}})
	}
	switch len(ports) {
	case 0:
	case 1:
		f.FilterDisabled = ports[0]
	default:
		f.FilterDisabled = &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_OrMatch{
			OrMatch: &listener.ListenerFilterChainMatchPredicate_MatchSet{Rules: ports}}}
	}
	l.ListenerFilters = append(l.ListenerFilters, f)
	l.ListenerFiltersTimeout = seconds(1)
	l.ContinueOnListenerFiltersTimeout = true
}

func outbound(ip string, port uint32, chains ...*listener.FilterChain) *listener.Listener {
	l := &listener.Listener{
		Name: compile.ListenerName(ip, port), Address: address(ip, port), BindToPort: no(), FilterChains: chains,
		TrafficDirection: core.TrafficDirection_OUTBOUND, PerConnectionBufferLimitBytes: u32(1 << 20),
	}
	return l
}

func outboundHTTP(port uint32) *listener.Filter {
	return httpManager(withRDS(connectionManager(fmt.Sprintf("outbound_%d", port), nil, []*accesslog.AccessLog{requestMetrics(sourceReport())}, refusedServer()), fmt.Sprint(port)))
}

// oneServiceHTTP routes whatever host to the service whose address was called.
func oneServiceHTTP(p *compile.ServicePort) *listener.Filter {
	rc := InboundRoutes(0)
	rc.Name = p.Cluster()
	rc.VirtualHosts[0].Name = fmt.Sprintf("%s:%d", p.Host, p.Number)
	rc.VirtualHosts[0].Routes[0] = to(p.Cluster(), "default", retries())
	return httpManager(withRoutes(connectionManager(fmt.Sprintf("outbound_%d", p.Number), nil, []*accesslog.AccessLog{requestMetrics(sourceReport())}, refusedServer()), rc))
}

// refusedServer audits a server that is not one of the service's identities, also when another one answers in the end.
func refusedServer() *accesslog.AccessLog {
	return audit(when(failedUpstream), outboundTags("http"))
}

func outboundTCPLogs(p *compile.ServicePort) []*accesslog.AccessLog {
	return append([]*accesslog.AccessLog{audit(atEnd(when(failedUpstream)), outboundTags("tcp"))},
		connectionMetrics(ofService(sourceReport(), p))...)
}

// opaque tells the server's proxy, by the ALPN of the connection, that these bytes are not HTTP.
func opaque() *listener.Filter {
	return networkFilter("envoy.filters.network.set_filter_state", &setfilterstate.Config{OnNewConnection: []*filterstate.FilterStateValue{{
		Key:   &filterstate.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
		Value: &filterstate.FilterStateValue_FormatString{FormatString: inline(istiocompat.ALPNOpaque)},
	}}})
}

func inline(s string) *core.SubstitutionFormatString {
	return &core.SubstitutionFormatString{Format: &core.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: s}}}}
}
