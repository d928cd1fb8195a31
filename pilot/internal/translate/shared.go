package translate

import (
	"fmt"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Names of what the listeners of all services have in common, so that a service costs a proxy little: extension configurations, of filters that
// know a service by where a connection came in. The filter chain has the service's name, and the connection its port. A service that is to be
// treated in a way of its own has filters of its own in its listener.
const (
	// SharedManager has the requests, and SharedForward the connections of what is not HTTP, to the cluster that SharedCluster says.
	SharedManager = "outbound-http"
	SharedForward = "outbound-tcp"
	SharedCluster = "outbound-tcp-cluster"
)

// SharedIn is the name of what is shared by the services whose clusters are in a subset (compile.Subset), where it differs by that.
func SharedIn(name, subset string) string {
	if subset != "" {
		name += "-" + subset
	}
	return name
}

const (
	// calledService is the host of the service whose chain a connection came in by.
	calledService = "%FILTER_CHAIN_NAME%"
	// clusterHeader says to the shared manager's route which cluster a request goes to. What a client says in it is replaced, and a server
	// never gets it.
	clusterHeader = "x-bulwark-cluster"
)

// calledCluster is the cluster of the service and the port, as istiocompat.OutboundCluster names it.
func calledCluster(subset string) string {
	return "outbound|%DOWNSTREAM_LOCAL_PORT%|" + subset + "|" + calledService
}

// httpChain takes the requests of a service's clients.
func httpChain(f *compile.Frontend) *listener.FilterChain {
	own, ok := f.OwnRoutes()
	switch {
	case f.Service.TLS != nil:
		return securedHTTP(f.Service.Host, own)
	case ok:
		m := outboundManager(fmt.Sprintf("outbound_%d", f.Service.Number), f.Service.Host, telemetry.ServerOf(f), own)
		return &listener.FilterChain{Name: "http", Filters: []*listener.Filter{httpManager(m)}}
	}
	return &listener.FilterChain{Name: f.Service.Host, Filters: []*listener.Filter{shared(SharedIn(SharedManager, subsetOf(f)), &hcm.HttpConnectionManager{})}}
}

// tcpChain takes connections of which nothing is known but that they are not HTTP. A pod of a headless service is called at the pod's own port, of
// which no cluster has a name.
func tcpChain(f *compile.Frontend) *listener.FilterChain {
	switch {
	case f.Service.TLS != nil:
		return securedTCP(f.Service.Host, f.Backend())
	case f.Pod != nil:
		own := forward(f.Backend(), f.Service.Cluster(), telemetry.OutboundConnections(f.Service.Host, telemetry.ServerOf(f)))
		return &listener.FilterChain{Name: "tcp", Filters: []*listener.Filter{
			envoy.NetworkFilter("envoy.filters.network.set_filter_state", connectionState(opaque())), tcpProxy(own)}}
	}
	return &listener.FilterChain{Name: f.Service.Host, Filters: []*listener.Filter{shared(SharedIn(SharedCluster, subsetOf(f)), &setfilterstate.Config{}), shared(SharedForward, &tcpproxy.TcpProxy{})}}
}

func subsetOf(f *compile.Frontend) string { return compile.Subset(f.Service.Family) }

func shared(name string, kind proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(kind)}}
}

// OutboundForward is the configuration of SharedForward.
func OutboundForward() *core.TypedExtensionConfig {
	return envoy.Extension(SharedForward, forward(noCluster, "outbound", telemetry.OutboundConnections(calledService, telemetry.ChosenServer)))
}

// OutboundForwardCluster is the configuration of SharedCluster in a subset.
func OutboundForwardCluster(subset string) *core.TypedExtensionConfig {
	return envoy.Extension(SharedIn(SharedCluster, subset), connectionState(opaque(), stateOf("envoy.tcp_proxy.cluster", calledCluster(subset))))
}

// opaque tells the server's proxy, by the ALPN of the connection, that these bytes are not HTTP.
func opaque() *filterstate.FilterStateValue {
	return stateOf("envoy.network.application_protocols", istiocompat.ALPNOpaque)
}

func connectionState(values ...*filterstate.FilterStateValue) *setfilterstate.Config {
	return &setfilterstate.Config{OnNewConnection: values}
}

func stateOf(key, format string) *filterstate.FilterStateValue {
	return &filterstate.FilterStateValue{Key: &filterstate.FilterStateValue_ObjectKey{ObjectKey: key},
		Value: &filterstate.FilterStateValue_FormatString{FormatString: envoy.Format(format)}}
}

// noted is a text under a key of our own.
func noted(key, format string) *filterstate.FilterStateValue {
	out := stateOf(key, format)
	out.FactoryKey = "envoy.string"
	return out
}

// OutboundManager is the configuration of SharedManager in a subset.
func OutboundManager(subset string) *core.TypedExtensionConfig {
	m := outboundManager("outbound", calledService, telemetry.ChosenServer, compile.DefaultRoutes())
	m.EarlyHeaderMutationExtensions = marked(overwritten(clusterHeader, calledCluster(subset)))
	table := m.GetRouteConfig()
	table.RequestHeadersToRemove = append(table.RequestHeadersToRemove, clusterHeader)
	return envoy.Extension(SharedIn(SharedManager, subset), m)
}

// outboundManager is between the clients of a service and those who serve it. Service and server are what telemetry asks for.
func outboundManager(statPrefix, service, server string, t compile.Table) *hcm.HttpConnectionManager {
	return refusedNow(ofOwnApplication(withRoutes(connectionManager(statPrefix, nil, telemetry.OutboundRequests(service, server), telemetry.OutboundAttempts(service)), routes(t))))
}
