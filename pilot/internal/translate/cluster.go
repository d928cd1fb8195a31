package translate

import (
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	lbcommon "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	ringhash "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Names of clusters that every proxy has.
const (
	PassthroughCluster = istiocompat.PassthroughCluster
	InboundCluster     = "InboundPassthroughCluster"
	AdminCluster       = "prometheus_stats"
)

const (
	transportSocketMatch = "envoy.transport_socket_match"
	tlsModeKey           = "tlsMode"
	tlsModeDisabled      = "disabled"
	httpOptions          = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// OutboundCluster is a service port as its clients reach it. TLS is what an endpoint gets unless it is marked plain, so
// that an address nobody vouches for never gets plaintext; where a rule has applications prove themselves, it is what all get. The client's own certificate comes by its delivery.
func OutboundCluster(p *compile.ServicePort, way delivery.Way) *cluster.Cluster {
	c := &cluster.Cluster{
		Name: p.Cluster(), ConnectTimeout: envoy.Seconds(5), LbPolicy: cluster.Cluster_LEAST_REQUEST,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: overADS()},
		CircuitBreakers:      generous(),
	}
	keptAlive(c)
	if p.Sticky { // no headless service is
		c.LbPolicy, c.LoadBalancingPolicy = cluster.Cluster_LOAD_BALANCING_POLICY_CONFIG, sticky()
	}
	if p.Service.Headless { // the client has chosen a pod by its address
		d := originalDst(c.Name)
		c.LbPolicy, c.ClusterDiscoveryType, c.EdsClusterConfig = d.LbPolicy, d.ClusterDiscoveryType, nil
	}
	switch {
	case p.TLS != nil:
		c.TransportSocket = handshake.Origination(p.TLS, p.Names(), p.ServerName())
	case p.Mutual:
		c.TransportSocket = handshake.Upstream(p, way)
		if !p.Always {
			c.TransportSocketMatches = []*cluster.Cluster_TransportSocketMatch{{
				Name: "plaintext", Match: structOf(tlsModeKey, tlsModeDisabled), TransportSocket: envoy.RawBuffer()}}
		}
	}
	switch p.Protocol {
	case protocol.HTTP2:
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(explicitHTTP2())}
	case protocol.HTTP, protocol.Auto:
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(sameAsDownstream())}
	}
	return c
}

// clientKey is where a connection's client is noted whom a service is to keep with its endpoint.
const clientKey = "bulwark.client"

// sticky gives a client always the same endpoint. When an endpoint comes, of many clients few move, all to the new one, and when one goes none
// but its own.
func sticky() *cluster.LoadBalancingPolicy {
	byClient := &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_FilterState_{
		FilterState: &route.RouteAction_HashPolicy_FilterState{Key: clientKey}}}
	ring := &ringhash.RingHash{ConsistentHashingLbConfig: &lbcommon.ConsistentHashingLbConfig{HashPolicy: []*route.RouteAction_HashPolicy{byClient}}}
	return &cluster.LoadBalancingPolicy{Policies: []*cluster.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: envoy.Extension("envoy.load_balancing_policies.ring_hash", ring)}}}
}

// notedClient notes by whose address a connection comes, whatever its requests say of where they are from.
func notedClient() *listener.Filter {
	client := stateOf(clientKey, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%")
	client.FactoryKey = "envoy.hashable_string"
	return envoy.NetworkFilter("envoy.filters.network.set_filter_state", connectionState(client))
}

// generous lifts Envoy's defaults (1,024 connections), which are too low for a proxy that must not be noticed.
func generous() *cluster.CircuitBreakers {
	return &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
		MaxConnections: envoy.U32(1 << 20), MaxPendingRequests: envoy.U32(1 << 16), MaxRequests: envoy.U32(1 << 20), MaxRetries: envoy.U32(1024)}}}
}

func explicitHTTP2() *upstreams.HttpProtocolOptions {
	return &upstreams.HttpProtocolOptions{CommonHttpProtocolOptions: bounds(), UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: ofServers()}}}}
}

// sameAsDownstream has requests go on in the protocol that they came in. Some servers give an answer in chunks a length, too, which means nothing (RFC 9112, section 6.3); a
// request with both is refused.
func sameAsDownstream() *upstreams.HttpProtocolOptions {
	return &upstreams.HttpProtocolOptions{
		CommonHttpProtocolOptions: bounds(),
		UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &upstreams.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &core.Http1ProtocolOptions{EnableTrailers: true, HeaderKeyFormat: asWritten(), AllowChunkedLength: true}, Http2ProtocolOptions: ofServers()}}}
}

// bounds are those of answers.
func bounds() *core.HttpProtocolOptions {
	return &core.HttpProtocolOptions{MaxHeadersCount: envoy.U32(maxHeaders), MaxResponseHeadersKb: envoy.U32(maxHeadersKb)}
}

func structOf(key, value string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
}

// originalDst is a cluster that has no endpoints of its own: a connection goes to where it was going.
func originalDst(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name: name, ConnectTimeout: envoy.Seconds(5), LbPolicy: cluster.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST},
	}
}

// Passthrough sends what no service takes to where it was going, as it is.
func Passthrough() *cluster.Cluster {
	c := keptAlive(originalDst(PassthroughCluster))
	c.CircuitBreakers = generous()
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(sameAsDownstream())}
	return c
}

// Inbound is the application itself, on the port that a client asked for, whichever that is: of a port that a Service names
// nothing is different here, so a Service that comes or goes changes no cluster. The source address keeps the redirection
// from taking the connection for another client's.
func Inbound(ipv6 bool) *cluster.Cluster {
	c := originalDst(InboundCluster)
	c.CircuitBreakers = generous()
	c.UpstreamBindConfig = fromMesh(ipv6)
	options := sameAsDownstream()
	options.CommonHttpProtocolOptions.IdleTimeout = durationpb.New(applicationIdle)
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(options)}
	return c
}

// applicationIdle is after how long without a request the proxy closes its connection to the application. Servers close connections that have been idle, after
// two or five seconds, or sixty, and a request that meets that moment is lost: a client whose own connection it is knows how to avoid that, or tries again, and cannot
// where the connection is the proxy's. So the proxy is always the first.
const applicationIdle = 1500 * time.Millisecond

// Admin is Envoy's own admin port, of which 15090 shows one path.
func Admin() *cluster.Cluster {
	return static(AdminCluster, envoy.Address("127.0.0.1", mesh.ProxyAdminPort))
}

func static(name string, at *core.Address) *cluster.Cluster {
	return &cluster.Cluster{
		Name: name, ConnectTimeout: envoy.Seconds(1), ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		LoadAssignment: &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: at}}}}}}},
	}
}

// Endpoints are the addresses of a service port.
func Endpoints(name string, eps []compile.Endpoint) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name}
	if len(eps) == 0 {
		return out
	}
	group := &endpoint.LocalityLbEndpoints{LoadBalancingWeight: envoy.U32(uint32(len(eps)))}
	for _, e := range eps {
		group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(e))
	}
	out.Endpoints = append(out.Endpoints, group)
	return out
}

func lbEndpoint(e compile.Endpoint) *endpoint.LbEndpoint {
	md := &core.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
	if e.Plain {
		md.FilterMetadata[transportSocketMatch] = structOf(tlsModeKey, tlsModeDisabled)
	}
	if e.Workload != (compile.Labels{}) {
		md.FilterMetadata[telemetry.MetadataKey] = structOf(telemetry.ServerKey, telemetry.ServerName(e.Workload))
	}
	return &endpoint.LbEndpoint{
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: envoy.Address(e.Address, e.Port)}},
		Metadata:       md, LoadBalancingWeight: envoy.U32(1),
	}
}
