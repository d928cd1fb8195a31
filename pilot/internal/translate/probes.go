package translate

import (
	_ "embed"
	"fmt"
	"strings"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationrules "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	lua "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	upstreamcodec "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	tcppool "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/tcp/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// HealthListener is the name of the listener that answers kubelet.
const HealthListener = "health"

// Clusters by which the proxy asks the application what kubelet would. Each goes to the address in a header that only the script sets: what comes in has it
// taken away before anything looks at it, and without it there is no address to go to.
const (
	askHTTP     = "kubelet|http"
	askHTTPS    = "kubelet|https"
	askTCP      = "kubelet|tcp"
	askGRPC     = "kubelet|grpc"
	destination = "x-envoy-original-dst-host"
)

// script decides what is asked, and follows redirects as kubelet does.
//
//go:embed probes.lua
var script string

const scriptFilter = "envoy.filters.http.lua"

// AnswerKubelet adds what answers kubelet, which has no certificate: for the proxy itself, and for the application's own
// probes and hooks, which would not get through to a port that takes mutual TLS only. It is in what an Envoy starts with, for it is all that is one pod's
// own: what comes from Pilot is the same for all pods of a class.
func AnswerKubelet(b *bootstrap.Bootstrap, probes []Probe, podIP string, ipv6 bool) {
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, at(healthListener(probes, podIP), mesh.ProxyHealthPort, ipv6))
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, probeClusters(probes, ipv6)...)
}

// Probe is an original probe or hook of an application's container, which kubelet now asks of the proxy by its name.
type Probe struct {
	Container string
	Name      string        // livez, readyz, startupz, poststart or prestop
	Timeout   time.Duration // after which kubelet has given up for sure, or none
	HTTP      *HTTPProbe
	TCP       *uint32 // port
	GRPC      *GRPCProbe
}

// HTTPProbe is an httpGet.
type HTTPProbe struct {
	Port    uint32
	URI     string // path and query as they are in a request's first line
	HTTPS   bool
	Host    string // as declared, or empty
	Headers []Header
	Hook    bool // of a container's lifecycle
}

// Header is a header of a request.
type Header struct{ Name, Value string }

// GRPCProbe is a grpc probe.
type GRPCProbe struct {
	Port    uint32
	Service string
}

// FullName is what kubelet asks for: a path, and of gRPC the service's name.
func (p Probe) FullName() string { return fmt.Sprintf("/app-health/%s/%s", p.Container, p.Name) }

func healthListener(probes []Probe, podIP string) *listener.Listener {
	routes := []*route.Route{exactly("/healthz/ready", AdminCluster, "/ready")}
	if len(probes) == 0 {
		return plainListener(HealthListener, nil, routes, telemetry.Probes())
	}
	var calls []any
	for _, p := range probes {
		switch {
		case p.HTTP != nil:
			to := askHTTP
			if p.HTTP.HTTPS {
				to = askHTTPS
			}
			routes = append(routes, asked("GET", p.FullName(), to, p.Timeout, podIP, map[string]any{"probe": httpContext(p)}))
		case p.TCP != nil:
			routes = append(routes, asked("GET", p.FullName(), askTCP, p.Timeout, podIP, map[string]any{"probe": map[string]any{"port": float64(*p.TCP)}}))
		default:
			calls = append(calls, map[string]any{"name": p.FullName(), "service": p.GRPC.Service, "port": float64(p.GRPC.Port)})
		}
	}
	if calls != nil { // kubelet says by grpc-timeout how long it waits
		routes = append(routes, asked("POST", "/grpc.health.v1.Health/Check", askGRPC, 0, podIP, map[string]any{"calls": calls}))
	}
	m := connectionManager(HealthListener, []*hcm.HttpFilter{
		envoy.HTTPFilter(scriptFilter, &lua.Lua{ClearRouteCache: envoy.No(), DefaultSourceCode: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: script}}}),
	}, []*accesslog.AccessLog{telemetry.Probes()})
	m.EarlyHeaderMutationExtensions = early(without(destination)...)
	m.GenerateRequestId = envoy.No()
	m.LocalReplyConfig = failures()
	return listening(HealthListener, m, routes)
}

// asked is a request of kubelet's, for the script.
func asked(method, path, cluster string, timeout time.Duration, podIP string, context map[string]any) *route.Route {
	context["address"] = podIP
	proxy := map[string]any{}
	for _, port := range mesh.ProxyPorts {
		proxy[fmt.Sprint(port)] = true
	}
	context["proxy"] = proxy
	r := exactly(path, cluster, "")
	r.Match.Headers = []*route.HeaderMatcher{{Name: ":method", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: envoy.Exact(method)}}}
	r.GetRoute().Timeout = envoy.Seconds(timeout.Seconds())
	fields, err := structpb.NewStruct(context)
	if err != nil { // only for values of other types
		panic(fmt.Sprintf("context of %s: %v", path, err))
	}
	r.TypedPerFilterConfig = map[string]*anypb.Any{scriptFilter: envoy.Typed(&lua.LuaPerRoute{FilterContext: fields})}
	return r
}

func httpContext(p Probe) map[string]any {
	out := map[string]any{"port": float64(p.HTTP.Port), "path": p.HTTP.URI, "scheme": "http", "timeout": float64(p.Timeout.Milliseconds())}
	if p.HTTP.HTTPS {
		out["scheme"] = "https"
	}
	if p.HTTP.Host != "" {
		out["host"] = p.HTTP.Host
	}
	if p.HTTP.Hook {
		out["hook"] = true
	}
	var headers []any
	for _, h := range p.HTTP.Headers {
		headers = append(headers, map[string]any{"name": strings.ToLower(h.Name), "value": h.Value})
	}
	if headers != nil {
		out["headers"] = headers
	}
	return out
}

// failures are what kubelet is told where it would have had no answer: by a redirect to what is no URL, its client fails, as it would have, and
// says why. An answer with a status would be one of the application's, and of a hook a success.
func failures() *hcm.LocalReplyConfig {
	failed := func(flag, reason string) *hcm.ResponseMapper {
		return &hcm.ResponseMapper{Filter: envoy.Flagged(flag), StatusCode: envoy.U32(302), HeadersToAdd: []*core.HeaderValueOption{{
			Header: &core.HeaderValue{Key: "location", Value: reason}, AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}}}
	}
	grpc := &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_HeaderFilter{HeaderFilter: &accesslog.HeaderFilter{
		Header: &route.HeaderMatcher{Name: "content-type", HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: envoy.Prefix("application/grpc")}}}}}
	refused := &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_AndFilter{AndFilter: &accesslog.AndFilter{
		Filters: []*accesslog.AccessLogFilter{grpc, envoy.Flagged("UF")}}}}
	return &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{
		{Filter: refused, BodyFormatOverride: envoy.Format("dial tcp %UPSTREAM_HOST%: connect: connection refused")},
		{Filter: grpc, BodyFormatOverride: envoy.Format("%LOCAL_REPLY_BODY%")}, // gRPC has a status for it
		failed("UF", "dial tcp %UPSTREAM_HOST%: %UPSTREAM_TRANSPORT_FAILURE_REASON%"),
		failed("UC", "read tcp %UPSTREAM_HOST%: EOF"),
		failed("UR", "read tcp %UPSTREAM_HOST%: connection reset by peer"),
		failed("UPE", "read tcp %UPSTREAM_HOST%: malformed HTTP response"),
	}}
}

func without(headers ...string) (out []*mutationrules.HeaderMutation) {
	for _, name := range headers {
		out = append(out, &mutationrules.HeaderMutation{Action: &mutationrules.HeaderMutation_Remove{Remove: name}})
	}
	return out
}

// probeClusters are the application as kubelet would ask it, on the pod's address: by a connection for each question.
func probeClusters(probes []Probe, ipv6 bool) []*cluster.Cluster {
	var http, tcp, grpc bool
	for _, p := range probes {
		http, tcp, grpc = http || p.HTTP != nil, tcp || p.TCP != nil, grpc || p.GRPC != nil
	}
	var out []*cluster.Cluster
	if http { // an application may redirect from the one to the other
		plain := askedCluster(askHTTP, &upstreams.HttpProtocolOptions{UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: kubeletsHTTP1()}}}})
		secure := askedCluster(askHTTPS, &upstreams.HttpProtocolOptions{UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_AutoConfig{
			AutoConfig: &upstreams.HttpProtocolOptions_AutoHttpConfig{HttpProtocolOptions: kubeletsHTTP1(), Http2ProtocolOptions: &core.Http2ProtocolOptions{}}}})
		secure.TransportSocket = envoy.TransportSocket("envoy.transport_sockets.tls", &tls.UpstreamTlsContext{CommonTlsContext: &tls.CommonTlsContext{ // kubelet verifies nothing here either
			TlsParams: &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3}}})
		out = append(out, plain, secure)
	}
	if tcp {
		c := askedCluster(askTCP, nil)
		c.UpstreamConfig = envoy.Extension("envoy.upstreams.http.tcp", &tcppool.TcpConnectionPoolProto{})
		out = append(out, c)
	}
	if grpc {
		out = append(out, askedCluster(askGRPC, explicitHTTP2()))
	}
	for _, c := range out {
		c.UpstreamBindConfig = fromMesh(ipv6)
	}
	return out
}

func askedCluster(name string, options *upstreams.HttpProtocolOptions) *cluster.Cluster {
	c := originalDst(name)
	c.LbConfig = &cluster.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &cluster.Cluster_OriginalDstLbConfig{UseHttpHeader: true}}
	c.ConnectTimeout = envoy.Seconds(600) // kubelet gives up when it likes
	if options != nil {
		options.CommonHttpProtocolOptions = bounds()
		options.CommonHttpProtocolOptions.MaxRequestsPerConnection = envoy.U32(1)
		options.HttpFilters = []*hcm.HttpFilter{ // what the proxy says to itself
			envoy.HTTPFilter("envoy.filters.http.header_mutation", &headermutation.HeaderMutation{Mutations: &headermutation.Mutations{
				RequestMutations: without(destination, "x-envoy-internal", "x-envoy-expected-rq-timeout-ms")}}),
			envoy.HTTPFilter("envoy.filters.http.upstream_codec", &upstreamcodec.UpstreamCodec{}),
		}
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: envoy.Typed(options)}
	}
	return c
}

// kubeletsHTTP1 writes names as Go does, which kubelet is written in.
func kubeletsHTTP1() *core.Http1ProtocolOptions {
	return &core.Http1ProtocolOptions{EnableTrailers: true, HeaderKeyFormat: &core.Http1ProtocolOptions_HeaderKeyFormat{
		HeaderFormat: &core.Http1ProtocolOptions_HeaderKeyFormat_ProperCaseWords_{ProperCaseWords: &core.Http1ProtocolOptions_HeaderKeyFormat_ProperCaseWords{}}}}
}

// StatsListener15090 shows Prometheus the proxy's metrics and nothing else of its admin port.
func StatsListener15090(ipv6 bool) *listener.Listener {
	return at(plainListener(StatsListener, nil, []*route.Route{exactly("/stats/prometheus", AdminCluster, "/stats/prometheus")}), mesh.ProxyStatsPort, ipv6)
}

func plainListener(name string, filters []*hcm.HttpFilter, routes []*route.Route, logs ...*accesslog.AccessLog) *listener.Listener {
	return listening(name, connectionManager(name, filters, logs), routes)
}

func listening(name string, m *hcm.HttpConnectionManager, routes []*route.Route) *listener.Listener {
	rc := &route.RouteConfiguration{Name: name, ValidateClusters: envoy.No(),
		VirtualHosts: []*route.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: routes}}}
	m.UpgradeConfigs = nil
	return &listener.Listener{
		Name:         name,
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{httpManager(withRoutes(m, rc))}}},
	}
}

func exactly(path, cluster, rewrite string) *route.Route {
	return &route.Route{
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Path{Path: path}},
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster}, PrefixRewrite: rewrite, Timeout: envoy.Seconds(60)}},
	}
}
