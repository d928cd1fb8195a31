package translate

import (
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	xdstype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// InboundListener takes every connection to the workload. A connection that no filter chain takes is refused.
//
// Envoy closes the connections of a filter chain that has changed or gone, and those of the whole listener where anything
// but its chains and their matcher has changed. So the chains say only how a connection is handled, never for which port or
// by whose wish: what Services, policies and modes say is in the matcher, which applies to new connections, and in the
// configuration of authorization, which comes by itself. Plaintext is the exception: the chains for it go when no port
// takes plaintext any more, because then their connections are forbidden.
func InboundListener(set compile.Settings, w *compile.Workload) *listener.Listener {
	l := &listener.Listener{
		Name: VirtualInbound, TrafficDirection: core.TrafficDirection_INBOUND,
		PerConnectionBufferLimitBytes: envoy.U32(1 << 16), // also what of a connection is read at once: a flood of requests that are taken back would fill a proxy's memory
		SocketOptions:                 keepalive(),
		ListenerFilters: []*listener.ListenerFilter{
			envoy.ListenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{}),
			envoy.ListenerFilter("envoy.filters.listener.tls_inspector", &tlsinspector.TlsInspector{}),
		},
		AccessLog:          []*accesslog.AccessLog{telemetry.InboundRefused()},
		FilterChains:       inboundChains(set, w),
		FilterChainMatcher: believed(set, w, inboundMatcher(set, w)),
	}
	sniff(l)
	for _, inspector := range inspectors(l) {
		inspector.FilterDisabled = uninspected(w)
	}
	if proxied(set, w) {
		l.ListenerFilters = slices.Insert(l.GetListenerFilters(), 1, headerFilters(w)...)
	}
	return at(l, mesh.InboundPort, w.IPv6)
}

// uninspected are the ports whose connections go to the application without a look at them: those of mode DISABLE, where there is neither TLS of the mesh's to find,
// nor a policy about requests that would not take everything for HTTP.
func uninspected(w *compile.Workload) *listener.ListenerFilterChainMatchPredicate {
	var off, on []*listener.ListenerFilterChainMatchPredicate
	for _, p := range w.Ports {
		one := &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &xdstype.Int32Range{Start: int32(p.Number), End: int32(p.Number) + 1}}}
		if p.Mode == authz.Disable {
			off = append(off, one)
		} else {
			on = append(on, one)
		}
	}
	switch {
	case w.Other.Mode != authz.Disable:
		return anyOf(off)
	case len(on) == 0:
		return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_AnyMatch{AnyMatch: true}}
	}
	return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: anyOf(on)}}
}

func anyOf(all []*listener.ListenerFilterChainMatchPredicate) *listener.ListenerFilterChainMatchPredicate {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listener.ListenerFilterChainMatchPredicate_MatchSet{Rules: all}}}
}

// SameInboundListener reports whether two workloads of one class have the same inbound listener, without making either.
// Of the policies it holds next to nothing: they reach the proxy as resources of their own.
func SameInboundListener(set compile.Settings, a, b *compile.Workload) bool {
	identity := authz.ByIdentity(a.Policies)
	if a.IPv6 != b.IPv6 || a.Other != b.Other || !slices.Equal(a.Ports, b.Ports) || enforced(a.Policies) != enforced(b.Policies) || askSeveral(a) != askSeveral(b) || identity != authz.ByIdentity(b.Policies) {
		return false
	}
	for _, p := range a.EveryPort() {
		if nothingButHTTP(a, p) != nothingButHTTP(b, p) || greetsStrangers(a, p, identity) != greetsStrangers(b, p, identity) {
			return false
		}
	}
	return slices.EqualFunc(greeted(set, a), greeted(set, b), func(x, y *matcher.StringMatcher) bool { return proto.Equal(x, y) })
}

// The filter chains of the inbound listener. A suffix tells those apart that share what is before it.
const (
	tlsHTTP        = "tls-http"
	tlsTCP         = "tls-tcp"
	tlsGreeting    = "tls-tcp-greeting" // the server speaks first, and not to everybody
	plainHTTP      = "plaintext-http"
	plainTCP       = "plaintext-tcp"
	awaitedVerdict = "-verdict" // of TCP: the application is connected when the policies have spoken
)

// inboundChains are the chains of a workload: TLS ends there or not, and what is inside is HTTP or not.
func inboundChains(set compile.Settings, w *compile.Workload) []*listener.FilterChain {
	c, asks := chains{set, w}, askSeveral(w)
	out := []*listener.FilterChain{c.tls(tlsHTTP, c.http(true)), c.tls(tlsTCP+asks, c.tcp(true, afterHandshake)), c.tls(tlsTCP+awaitedVerdict+asks, c.tcp(true, afterVerdict))}
	if peers := greeted(set, w); peers != nil {
		out = append(out, c.secured(tlsGreeting+asks, peers, c.tcp(true, afterHandshake)))
	}
	for _, group := range plaintextGroups(w) {
		out = append(out, chain(plainHTTP+group, c.http(false)), chain(plainTCP+group+asks, c.tcp(false)), chain(plainTCP+awaitedVerdict+group+asks, c.tcp(false, afterVerdict)))
	}
	return out
}

// greeted are the peers of the ports whose server may speak first, nil if all of the mesh are.
func greeted(set compile.Settings, w *compile.Workload) []*matcher.StringMatcher {
	identity := authz.ByIdentity(w.Policies)
	if !slices.ContainsFunc(w.EveryPort(), func(p compile.InboundPort) bool { return mayGreet(p, identity) }) {
		return nil
	}
	return handshake.Admitted(w.Policies, set.TrustDomains())
}

// chains builds the filter chains of a workload.
type chains struct {
	set compile.Settings
	w   *compile.Workload
}

func chain(name string, filters []*listener.Filter) *listener.FilterChain {
	return &listener.FilterChain{Name: name, Filters: filters, TransportSocketConnectTimeout: envoy.Seconds(15)}
}

// tls is a chain for every identity of the mesh.
func (c chains) tls(name string, filters []*listener.Filter) *listener.FilterChain {
	return c.secured(name, handshake.Members(c.set.TrustDomains()), filters)
}

// secured is a chain whose client has to be one of peers. A client that is no proxy is offered the protocols of HTTP; a proxy
// asks for a protocol of its own, and none is chosen.
func (c chains) secured(name string, peers []*matcher.StringMatcher, filters []*listener.Filter) *listener.FilterChain {
	out := chain(name, append([]*listener.Filter{notedPeer()}, filters...))
	out.TransportSocket = handshake.Downstream(c.w.Class.Delivery, peers, "h2", "http/1.1")
	return out
}

func (c chains) http(mutual bool) []*listener.Filter {
	m := seeingOffers(connectionManager("inbound", append(httpAuthorizationFilters(), openHTTPFilters()...), telemetry.InboundRequests(mutual)))
	m.EarlyHeaderMutationExtensions = marked()
	m.XffNumTrustedHops = hops(c.set.TrustedProxies)
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: inboundTable(mutual), ConfigSource: overADS()}}
	return append(openFilters(notedPort()), httpManager(toApplication(m, c.w.Class)))
}

// hops are of the proxies that append to X-Forwarded-For those before the one that connects. Where there is none, nobody has so many: the remote address is the connection's.
func hops(proxies int) uint32 {
	if proxies == 0 {
		return 1 << 20
	}
	return uint32(proxies - 1)
}

func (c chains) tcp(mutual bool, modes ...tcpMode) []*listener.Filter {
	proxy := forward(InboundCluster, "inbound", telemetry.InboundConnections(mutual))
	proxy.IdleTimeout = durationpb.New(c.w.Class.IdleTimeout)
	for _, mode := range modes {
		proxy = mode(proxy)
	}
	return append(append(openFilters(), tcpAuthorizationFilters(c.w)...), tcpProxy(proxy))
}
