package translate

import (
	"fmt"
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// InboundListener takes every connection to the workload. A connection that no filter chain takes is refused.
func InboundListener(set compile.Settings, w *compile.Workload) *listener.Listener {
	l := &listener.Listener{
		Name: VirtualInbound, Address: address(anyAddress, mesh.InboundPort), TrafficDirection: core.TrafficDirection_INBOUND,
		PerConnectionBufferLimitBytes: u32(1 << 20),
		ListenerFilters: []*listener.ListenerFilter{
			listenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{}),
			listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspector.TlsInspector{}),
		},
		AccessLog: []*accesslog.AccessLog{audit(when(refusedInbound), inboundTags("refused", 0))},
	}
	c := chains{set, w}
	var declared []uint32
	for _, p := range append(slices.Clone(w.Ports), w.Other) {
		l.FilterChains = append(l.FilterChains, c.port(p)...)
		if p.Protocol != registry.Auto {
			declared = append(declared, p.Number)
		}
	}
	sniff(l, declared...)
	return l
}

// SameInboundListener reports whether two workloads of one class have the same inbound listener, without making either.
// Of the policies it holds next to nothing: they reach the proxy as resources of their own.
func SameInboundListener(set compile.Settings, a, b *compile.Workload) bool {
	if a.Identity != b.Identity || a.Labels != b.Labels || a.Other != b.Other || !slices.Equal(a.Ports, b.Ports) ||
		enforced(a.Policies) != enforced(b.Policies) {
		return false
	}
	if !slices.ContainsFunc(a.Ports, func(p compile.InboundPort) bool { return p.ServerFirst }) {
		return true
	}
	return slices.EqualFunc(admitted(a.Policies, set.TrustDomain), admitted(b.Policies, set.TrustDomain),
		func(x, y *matcher.StringMatcher) bool { return proto.Equal(x, y) })
}

// InboundClusters are the workload's own ports.
func InboundClusters(w *compile.Workload) []*cluster.Cluster {
	out := []*cluster.Cluster{InboundCluster(InboundPassthroughCluster)}
	for _, p := range w.Ports {
		out = append(out, InboundCluster(InboundName(p.Number)))
	}
	return out
}

// chains builds the filter chains of a workload's ports.
type chains struct {
	set compile.Settings
	w   *compile.Workload
}

var (
	httpProtocols = []string{"http/1.0", "http/1.1", "h2c"} // as http_inspector calls what it sees
	serverALPN    = []string{"h2", "http/1.1"}
)

// port returns the chains of one port, by what it takes:
//
//	STRICT      mesh TLS; other TLS, which is taken for a mesh client without a proxy
//	PERMISSIVE  mesh TLS; plaintext; other TLS, passed on as the application's own
//	DISABLE     everything as plaintext
func (c chains) port(p compile.InboundPort) []*listener.FilterChain {
	var out []*listener.FilterChain
	if p.Mode != authz.Disable {
		out = append(out, c.mesh(p)...)
	}
	switch p.Mode {
	case authz.Strict:
		other := c.match(p, "tls")
		out = append(out, c.chain(p, "tls", other, true, p.Protocol != registry.TCP, serverALPN...))
	case authz.Permissive:
		out = append(out, c.plaintext(p, "raw_buffer")...)
		out = append(out, c.chain(p, "passthrough", c.match(p, "tls"), false, false))
	default:
		out = append(out, c.plaintext(p, "raw_buffer")...)
		out = append(out, c.chain(p, "passthrough", c.match(p, "tls"), false, false))
	}
	return out
}

// mesh is mutual TLS from a mesh proxy, told by its ALPN. No protocol is chosen by ALPN there, so the codec is found by
// what the client sends.
func (c chains) mesh(p compile.InboundPort) []*listener.FilterChain {
	http, tcp := c.match(p, "tls", istiocompat.ALPN), c.match(p, "tls", istiocompat.ALPNOpaque)
	switch {
	case p.Protocol == registry.Auto:
		return []*listener.FilterChain{c.chain(p, "mtls", http, true, true), c.chain(p, "mtls-opaque", tcp, true, false)}
	case p.Protocol.IsHTTP():
		http.ApplicationProtocols = append(http.ApplicationProtocols, istiocompat.ALPNOpaque)
		return []*listener.FilterChain{c.chain(p, "mtls", http, true, true)}
	}
	http.ApplicationProtocols = append(http.ApplicationProtocols, istiocompat.ALPNOpaque)
	return []*listener.FilterChain{c.chain(p, "mtls", http, true, false)}
}

func (c chains) plaintext(p compile.InboundPort, transport string) []*listener.FilterChain {
	switch {
	case p.Protocol == registry.Auto:
		return []*listener.FilterChain{
			c.chain(p, "plaintext-http", c.match(p, transport, httpProtocols...), false, true),
			c.chain(p, "plaintext", c.match(p, transport), false, false),
		}
	default:
		return []*listener.FilterChain{c.chain(p, "plaintext", c.match(p, transport), false, p.Protocol.IsHTTP())}
	}
}

func (c chains) match(p compile.InboundPort, transport string, protocols ...string) *listener.FilterChainMatch {
	m := &listener.FilterChainMatch{TransportProtocol: transport, ApplicationProtocols: protocols}
	if p.Number != 0 {
		m.DestinationPort = u32(p.Number)
	}
	return m
}

// chain is one filter chain: TLS ends here or not, and what is inside is HTTP or not. Policies hold either way.
func (c chains) chain(p compile.InboundPort, kind string, m *listener.FilterChainMatch, mutual, http bool, alpn ...string) *listener.FilterChain {
	name := InboundName(p.Number)
	out := &listener.FilterChain{Name: fmt.Sprintf("%s-%s", name, kind), FilterChainMatch: m, TransportSocketConnectTimeout: seconds(15)}
	if mutual {
		peers := []*matcher.StringMatcher{prefix("spiffe://" + c.set.TrustDomain + "/")}
		if !http && p.ServerFirst {
			peers = admitted(c.w.Policies, c.set.TrustDomain)
		}
		out.TransportSocket = downstreamTLS(c.w.Class.Delivery, peers, alpn...)
		out.Filters = append(out.Filters, peerSerial())
	}
	labels := destinationReport(c.w, p, mutual)
	if http {
		logs := []*accesslog.AccessLog{audit(either(audited(), when(deniedRequest)), inboundTags("http", p.Number)), requestMetrics(labels)}
		manager := connectionManager("inbound_"+name, httpAuthorizationFilters(), logs)
		out.Filters = append(out.Filters, httpManager(normalized(withRoutes(manager, InboundRoutes(p.Number)))))
		return out
	}
	logs := append([]*accesslog.AccessLog{audit(atEnd(either(audited(), when(deniedConnection))), inboundTags("tcp", p.Number))}, connectionMetrics(labels)...)
	proxy := forward(name, "inbound_"+name, logs)
	switch {
	case mutual && (p.ServerFirst || !enforced(c.w.Policies)):
		proxy = afterHandshake(proxy)
	case enforced(c.w.Policies):
		proxy = afterVerdict(proxy)
	}
	out.Filters = append(append(out.Filters, tcpAuthorizationFilters()...), tcpProxy(proxy))
	return out
}
