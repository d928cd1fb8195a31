package translate

import (
	"net/netip"
	"slices"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Names of listeners that every proxy has.
const (
	VirtualOutbound = "virtualOutbound"
	VirtualInbound  = "virtualInbound"
	StatsListener   = "prometheus_stats"
)

// OutboundListener takes every connection of the application and hands it to the listener of its original destination. What has none
// is refused if it goes to one of the ranges, in which the addresses of the cluster's Services are, and let through otherwise.
func OutboundListener(ranges []netip.Prefix, confined bool) *listener.Listener {
	l := &listener.Listener{
		Name: VirtualOutbound, UseOriginalDst: envoy.Yes(),
		TrafficDirection:              core.TrafficDirection_OUTBOUND,
		ListenerFilters:               []*listener.ListenerFilter{envoy.ListenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{})},
		PerConnectionBufferLimitBytes: envoy.U32(1 << 20), SocketOptions: keepalive(),
		FilterChains: []*listener.FilterChain{unnamed(confined)},
	}
	if refused := refusedRanges(ranges); refused != nil {
		l.FilterChains = append(l.FilterChains, refused)
	}
	return at(l, mesh.OutboundPort, compile.IPv6(ranges))
}

// unnamed is the chain for what nothing names, of proxies that are kept from that or not: it is refused, or goes on to where it was going, as it is.
func unnamed(confined bool) *listener.FilterChain {
	if confined {
		return outOfReach(nil)
	}
	return &listener.FilterChain{Name: "passthrough", Filters: []*listener.Filter{
		tcpProxy(forward(PassthroughCluster, PassthroughCluster, telemetry.PassedThrough(PassthroughCluster)))}}
}

// Peers that have gone without a word are found like this, and by nothing else: who is alive may be silent for ever. The first question comes after a minute, which
// keeps what is between from forgetting the connection, too.
const (
	keepaliveTime     = 60
	keepaliveInterval = 10
	keepaliveProbes   = 3
)

// keepalive are the options of a listening socket, which those of its connections inherit.
func keepalive() (out []*core.SocketOption) {
	for _, o := range []struct{ level, name, value int64 }{{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepaliveTime},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepaliveInterval}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveProbes}} {
		out = append(out, &core.SocketOption{Level: o.level, Name: o.name, Value: &core.SocketOption_IntValue{IntValue: o.value}, State: core.SocketOption_STATE_PREBIND})
	}
	return out
}

// keptAlive has the connections of a cluster find peers that have gone, too.
func keptAlive(c *cluster.Cluster) *cluster.Cluster {
	c.UpstreamConnectionOptions = &cluster.UpstreamConnectionOptions{TcpKeepalive: &core.TcpKeepalive{
		KeepaliveProbes: envoy.U32(keepaliveProbes), KeepaliveTime: envoy.U32(keepaliveTime), KeepaliveInterval: envoy.U32(keepaliveInterval)}}
	return c
}

// ServiceListener takes the connections to one address of a service port. It names nothing but that port, and looks at no
// Host: where a request goes, and whether over mutual TLS, follows from the address that was called.
func ServiceListener(f *compile.Frontend) *listener.Listener {
	switch {
	case f.Service.Protocol.IsHTTP():
		return outbound(f, httpChain(f))
	case f.Service.Protocol != protocol.Auto:
		return outbound(f, tcpChain(f))
	}
	http := httpChain(f)
	http.FilterChainMatch = &listener.FilterChainMatch{ApplicationProtocols: httpProtocols}
	l := outbound(f, http, tcpChain(f))
	sniff(l)
	return l
}

// sniff looks at a client's first bytes. A client that waits for the server to speak is taken for TCP, in plaintext, after a
// while.
func sniff(l *listener.Listener) {
	l.ListenerFilters = append(l.ListenerFilters, envoy.ListenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{}))
	l.ListenerFiltersTimeout = envoy.Seconds(1)
	l.ContinueOnListenerFiltersTimeout = true
}

func outbound(f *compile.Frontend, chains ...*listener.FilterChain) *listener.Listener {
	if f.Service.Sticky {
		for _, c := range chains {
			c.Filters = slices.Insert(c.Filters, 0, notedClient())
		}
	}
	return &listener.Listener{
		Name: f.Address.String(), Address: envoy.Address(f.IP, f.Port), BindToPort: envoy.No(), FilterChains: chains,
		TrafficDirection: core.TrafficDirection_OUTBOUND, PerConnectionBufferLimitBytes: envoy.U32(1 << 20),
	}
}
