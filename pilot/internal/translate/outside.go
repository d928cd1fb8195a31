package translate

import (
	"fmt"
	"net/netip"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dnscommon "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dns "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	cares "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
)

// What is outside of the mesh mostly has no address that is known: a client finds one itself, and says in its first bytes whom it wants there. So there is one listener for
// all addresses of a port (Envoy takes it where no listener has the very address), which has those connections go on to whom a client names, and lets all others through
// as they are, but for those to the addresses of the cluster's Services, which are refused as elsewhere.

// ExternalCluster is a port of a host outside of the mesh, as clients reach it whose certificates come in a way.
func ExternalCluster(x *compile.External, ipv6 bool, way delivery.Way) *cluster.Cluster {
	c := &cluster.Cluster{
		Name: x.Cluster(), ConnectTimeout: envoy.Seconds(5), LbPolicy: cluster.Cluster_LEAST_REQUEST, CircuitBreakers: generous(),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
	}
	keptAlive(c)
	switch {
	case x.Closed: // it has no servers
		c.LoadAssignment = &endpoint.ClusterLoadAssignment{ClusterName: c.Name}
		return c
	case x.Entry.Resolution == registry.None:
		d := originalDst(c.Name)
		c.LbPolicy, c.ClusterDiscoveryType = d.LbPolicy, d.ClusterDiscoveryType
		if x.Target != x.Port {
			c.LbConfig = &cluster.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &cluster.Cluster_OriginalDstLbConfig{UpstreamPortOverride: envoy.U32(x.Target)}}
		}
	case x.Entry.Resolution == registry.DNS || x.Entry.Resolution == registry.RoundRobin:
		resolved(c, ipv6, x.Entry.Resolution == registry.RoundRobin)
		c.LoadAssignment = servers(x)
	default:
		c.LoadAssignment = servers(x)
	}
	switch {
	case x.Mutual:
		c.TransportSocket = handshake.Abroad(x, way)
	case x.TLS != nil:
		c.TransportSocket = handshake.Origination(x.TLS, x.Names(), x.ServerName())
	}
	var options *upstreams.HttpProtocolOptions
	switch x.Protocol {
	case protocol.HTTP:
		options = sameAsDownstream()
	case protocol.HTTP2:
		options = explicitHTTP2()
	default:
		return c
	}
	options.UpstreamHttpProtocolOptions = handshake.RequestNames(x)
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(options)}
	return c
}

// resolved has a cluster find its servers by the pod's resolver. Names are taken as whole ones: completed by the pod's search domains, one of them could be that of a
// Service. A name that is not found keeps nobody from starting. New connections go to all addresses, or to the first one.
func resolved(c *cluster.Cluster, ipv6, first bool) {
	family := dnscommon.DnsLookupFamily_V4_ONLY
	if ipv6 {
		family = dnscommon.DnsLookupFamily_V4_PREFERRED
	}
	c.WaitForWarmOnInit = envoy.No()
	c.ClusterDiscoveryType = &cluster.Cluster_ClusterType{ClusterType: &cluster.Cluster_CustomClusterType{Name: "envoy.clusters.dns",
		TypedConfig: envoy.Typed(&dns.DnsCluster{RespectDnsTtl: true, DnsLookupFamily: family, AllAddressesInSingleEndpoint: first,
			TypedDnsResolverConfig: envoy.Extension("envoy.network.dns_resolver.cares", &cares.CaresDnsResolverConfig{
				DnsResolverOptions: &core.DnsResolverOptions{NoDefaultSearchDomain: true}})})}}
}

// servers are the endpoints of a port, or the host itself.
func servers(x *compile.External) *endpoint.ClusterLoadAssignment {
	endpoints := x.Entry.Endpoints
	if len(endpoints) == 0 {
		endpoints = []registry.EntryEndpoint{{Address: x.Host, Weight: 1}}
	}
	group := &endpoint.LocalityLbEndpoints{}
	for _, e := range endpoints {
		group.LbEndpoints = append(group.LbEndpoints, &endpoint.LbEndpoint{LoadBalancingWeight: envoy.U32(e.Weight),
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: envoy.Address(e.Address, e.Port(x.EntryPort))}}})
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: x.Cluster(), Endpoints: []*endpoint.LocalityLbEndpoints{group}}
}

// ExternalListener takes the connections to an address that is said to be a host's.
func ExternalListener(x *compile.External, to compile.Address) *listener.Listener {
	return outbound(x.Frontend(to), externalChain(x))
}

// externalChain takes connections that are known by their address, whatever they say.
func externalChain(x *compile.External) *listener.FilterChain {
	f := x.Frontend(compile.Address{})
	switch {
	case !x.Secured() && x.Protocol.IsHTTP():
		return httpChain(f)
	case !x.Secured():
		return tcpChain(f)
	}
	if x.Protocol.IsHTTP() {
		return securedHTTP(x.Host, x.Routes())
	}
	return securedTCP(x.Host, x.Cluster())
}

// securedHTTP takes requests of clients on whose behalf proxies speak TLS with a host.
func securedHTTP(host string, t compile.Table) *listener.FilterChain {
	return &listener.FilterChain{Name: host, Filters: []*listener.Filter{httpManager(withRoutes(outsideManager(host), routes(t)))}}
}

// securedTCP takes connections of such clients that are not HTTP.
func securedTCP(host, cluster string) *listener.FilterChain {
	return &listener.FilterChain{Name: host, Filters: []*listener.Filter{tcpProxy(forward(cluster, "outbound", telemetry.OutsideConnections(host)))}}
}

// NamedListenerAt is where the listener for all addresses of a family is.
func NamedListenerAt(port uint32, f registry.Family) compile.Address {
	if f == registry.IPv6 {
		return compile.Address{IP: anyIPv6Address, Port: port}
	}
	return compile.Address{IP: anyAddress, Port: port}
}

// NamedListener takes the connections to a port whose addresses have no listener of their own. Which hosts there are is in its chains for TLS, each of which comes and
// goes by itself, and in the routes of requests. Envoy looks at the address first, and takes the chains of the narrowest network: one of somebody's has all that goes
// there, and to the addresses of the mesh's own in it everything goes as it would without.
func NamedListener(o *compile.Outside, port uint32, f registry.Family) *listener.Listener {
	at := NamedListenerAt(port, f)
	l := &listener.Listener{
		Name: at.String(), Address: envoy.Address(at.IP, at.Port), BindToPort: envoy.No(),
		TrafficDirection: core.TrafficDirection_OUTBOUND, PerConnectionBufferLimitBytes: envoy.U32(1 << 20),
		DefaultFilterChain: unnamed(o.Only),
	}
	if hosts := o.At(port); len(hosts) > 0 { // else nobody waits for a client's first bytes
		l.ListenerFilters = []*listener.ListenerFilter{
			envoy.ListenerFilter("envoy.filters.listener.tls_inspector", &tlsinspector.TlsInspector{}),
			envoy.ListenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{}),
		}
		l.ListenerFiltersTimeout, l.ContinueOnListenerFiltersTimeout = envoy.Seconds(1), true
	}
	if refused := refusedRanges(o.Ranges); refused != nil {
		l.FilterChains = append(l.FilterChains, refused)
	}
	l.FilterChains = append(l.FilterChains, namedChains(o.At(port), port, nil)...)
	networks := o.NetworksAt(port, f)
	if own := o.OwnIn(networks); len(own) > 0 {
		as := unnamed(o.Only)
		as.FilterChainMatch = &listener.FilterChainMatch{PrefixRanges: cidrs(own)}
		l.FilterChains = append(append(l.FilterChains, namedChains(o.At(port), port, own)...), as)
	}
	for _, n := range networks {
		c := externalChain(o.Networks[compile.Network{Prefix: n, Port: port}])
		c.FilterChainMatch = &listener.FilterChainMatch{PrefixRanges: cidrs([]netip.Prefix{n})}
		l.FilterChains = append(l.FilterChains, c)
	}
	return l
}

// namedChains take what says whom it wants, at all addresses or at those of some networks.
func namedChains(hosts []*compile.External, port uint32, networks []netip.Prefix) (out []*listener.FilterChain) {
	if Requested(hosts) {
		out = append(out, &listener.FilterChain{Name: "http", Filters: []*listener.Filter{namedManager(port)},
			FilterChainMatch: &listener.FilterChainMatch{PrefixRanges: cidrs(networks), TransportProtocol: "raw_buffer", ApplicationProtocols: httpProtocols}})
	}
	for _, x := range hosts {
		if x.EntryPort.TLS {
			out = append(out, &listener.FilterChain{Name: x.Host,
				FilterChainMatch: &listener.FilterChainMatch{PrefixRanges: cidrs(networks), TransportProtocol: "tls", ServerNames: []string{x.Host}},
				Filters:          []*listener.Filter{tcpProxy(forward(x.Cluster(), "outbound", telemetry.OutsideConnections(x.Host)))}})
		}
	}
	return out
}

// Requested reports whether some of the hosts are named by requests.
func Requested(hosts []*compile.External) bool {
	for _, x := range hosts {
		if x.Protocol.IsHTTP() {
			return true
		}
	}
	return false
}

// namedManager takes requests to whom they name. A route has the host's name, for telemetry.
func namedManager(port uint32) *listener.Filter {
	m := outsideManager("%ROUTE_NAME%")
	m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: NamedTable(port), ConfigSource: overADS()}}
	return httpManager(m)
}

// outsideManager is between clients and a host outside, by its name or where that is found. Its own answer says why a server was not spoken with.
func outsideManager(host string) *hcm.HttpConnectionManager {
	m := ofOwnApplication(connectionManager("outbound", nil, telemetry.OutsideRequests(host), telemetry.OutboundAttempts(host)))
	m.LocalReplyConfig = &hcm.LocalReplyConfig{Mappers: append(unread(), &hcm.ResponseMapper{Filter: telemetry.Unproven(), BodyFormatOverride: envoy.Format(
		"the server of " + host + " at %UPSTREAM_HOST% has not proved that it is one: %UPSTREAM_TRANSPORT_FAILURE_REASON%")})}
	return m
}

// NamedTable is the name of the routes of requests to a port.
func NamedTable(port uint32) string { return fmt.Sprintf("outbound-named-%d", port) }

// NamedRoutes take requests to the hosts that they name, and all others to where their connection was going, unless they are refused.
func NamedRoutes(o *compile.Outside, port uint32) *route.RouteConfiguration {
	out := compile.Table{Name: NamedTable(port)}
	for _, x := range o.At(port) {
		if x.Protocol.IsHTTP() {
			out.Hosts = append(out.Hosts, compile.VirtualHost{Name: x.Host, Domains: []string{x.Host, x.Host + "."}, Retried: true,
				Rules: []compile.Rule{{Name: x.Host, Cluster: x.Cluster()}}})
		}
	}
	others := PassthroughCluster
	if o.Only {
		others = RefusalCluster
	}
	out.Hosts = append(out.Hosts, compile.VirtualHost{Name: others, Domains: []string{"*"}, Rules: []compile.Rule{{Name: others, Cluster: others}}})
	table := routes(out)
	table.IgnorePortInHostMatching = true
	return table
}
