package translate

import (
	"fmt"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheck "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	xdstype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// HealthListener is the name of the listener that answers kubelet.
const HealthListener = "health"

// AnswerKubelet adds what answers kubelet, which has no certificate: for the proxy itself, and for the application's own
// probes, which would not get through to a port that takes mutual TLS only. It is in what an Envoy starts with, for it is all that is one pod's
// own: what comes from Pilot is the same for all pods of a class.
func AnswerKubelet(b *bootstrap.Bootstrap, probes []Probe, podIP string) {
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, healthListener(probes))
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, probeClusters(probes, podIP)...)
}

func healthListener(probes []Probe) *listener.Listener {
	var filters []*hcm.HttpFilter
	routes := []*route.Route{exactly("/healthz/ready", AdminCluster, "/ready")}
	for _, p := range probes {
		if p.HTTP != nil {
			routes = append(routes, exactly(p.Path(), probeName(p), p.HTTP.Path))
			continue
		}
		// No request of the proxy's can ask an application's TCP port; the cluster's active checks do.
		filters = append(filters, envoy.HTTPFilter("envoy.filters.http.health_check", &healthcheck.HealthCheck{
			PassThroughMode:              envoy.No(),
			ClusterMinHealthyPercentages: map[string]*xdstype.Percent{probeName(p): {Value: 100}},
			Headers:                      []*route.HeaderMatcher{{Name: ":path", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: envoy.Exact(p.Path())}}},
		}))
	}
	return plainListener(HealthListener, mesh.ProxyHealthPort, filters, routes, telemetry.Probes())
}

// Probe is an original probe of an application's container, which kubelet now asks of the proxy at
// /app-health/<container>/<name>.
type Probe struct {
	Container string
	Name      string // livez, readyz or startupz
	HTTP      *HTTPProbe
	TCP       *uint32 // port
	GRPC      *GRPCProbe
}

// HTTPProbe is an httpGet.
type HTTPProbe struct {
	Port   uint32
	Path   string
	Scheme string // HTTPS or empty
}

// GRPCProbe is a grpc probe.
type GRPCProbe struct {
	Port    uint32
	Service string
}

// Path is where kubelet asks.
func (p Probe) Path() string { return fmt.Sprintf("/app-health/%s/%s", p.Container, p.Name) }

// StatsListener15090 shows Prometheus the proxy's metrics and nothing else of its admin port.
func StatsListener15090() *listener.Listener {
	return plainListener(StatsListener, mesh.ProxyStatsPort, nil, []*route.Route{exactly("/stats/prometheus", AdminCluster, "/stats/prometheus")})
}

func plainListener(name string, port uint32, filters []*hcm.HttpFilter, routes []*route.Route, logs ...*accesslog.AccessLog) *listener.Listener {
	rc := &route.RouteConfiguration{Name: name, ValidateClusters: envoy.No(),
		VirtualHosts: []*route.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: routes}}}
	m := withRoutes(connectionManager(name, filters, logs), rc)
	m.UpgradeConfigs = nil
	return &listener.Listener{
		Name: name, Address: envoy.Address(anyAddress, port),
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{httpManager(m)}}},
	}
}

func exactly(path, cluster, rewrite string) *route.Route {
	return &route.Route{
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Path{Path: path}},
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster}, PrefixRewrite: rewrite, Timeout: envoy.Seconds(60)}},
	}
}

// probeName names the cluster that stands for what a probe asks.
func probeName(p Probe) string {
	switch {
	case p.HTTP != nil && p.HTTP.Scheme == "HTTPS":
		return fmt.Sprintf("probe|https|%d", p.HTTP.Port)
	case p.HTTP != nil:
		return fmt.Sprintf("probe|http|%d", p.HTTP.Port)
	case p.GRPC != nil:
		return fmt.Sprintf("probe|grpc|%d|%s", p.GRPC.Port, p.GRPC.Service)
	}
	return fmt.Sprintf("probe|tcp|%d", *p.TCP)
}

// probeClusters are the application's ports as kubelet would ask them, on the pod's address.
func probeClusters(probes []Probe, podIP string) []*cluster.Cluster {
	var out []*cluster.Cluster
	seen := map[string]bool{}
	for _, p := range probes {
		if name := probeName(p); !seen[name] {
			seen[name] = true
			out = append(out, probeCluster(p, name, podIP))
		}
	}
	return out
}

func probeCluster(p Probe, name, podIP string) *cluster.Cluster {
	port := uint32(0)
	var check *core.HealthCheck
	switch {
	case p.HTTP != nil:
		port = p.HTTP.Port
	case p.GRPC != nil:
		port = p.GRPC.Port
		check = activeCheck()
		check.HealthChecker = &core.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &core.HealthCheck_GrpcHealthCheck{ServiceName: p.GRPC.Service}}
	default:
		port = *p.TCP
		check = activeCheck()
		check.HealthChecker = &core.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &core.HealthCheck_TcpHealthCheck{}}
	}
	c := static(name, envoy.Address(podIP, port))
	c.UpstreamBindConfig = fromMesh()
	if check != nil {
		c.HealthChecks = []*core.HealthCheck{check}
	}
	if p.GRPC != nil {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(explicitHTTP2())}
	}
	if p.HTTP != nil && p.HTTP.Scheme == "HTTPS" { // kubelet verifies nothing here either
		c.TransportSocket = envoy.TransportSocket("envoy.transport_sockets.tls", &tls.UpstreamTlsContext{CommonTlsContext: &tls.CommonTlsContext{
			TlsParams: &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3}}})
	}
	return c
}

func activeCheck() *core.HealthCheck {
	return &core.HealthCheck{Timeout: envoy.Seconds(1), Interval: envoy.Seconds(2), NoTrafficInterval: envoy.Seconds(2),
		UnhealthyThreshold: envoy.U32(1), HealthyThreshold: envoy.U32(1), ReuseConnection: envoy.No()}
}
