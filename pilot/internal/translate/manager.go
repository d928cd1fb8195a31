package translate

import (
	"fmt"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutation "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
)

// SharedManager names the connection manager that the listeners of all services have in common, so that a service costs a proxy little.
// It is an extension configuration, and knows a service by where a connection came in: the filter chain has the service's name, and the
// connection its port. A service that is to be treated in a way of its own has a connection manager in its listener.
const SharedManager = "outbound-http"

const (
	// calledService is the host of the service whose chain a connection came in by.
	calledService = "%FILTER_CHAIN_NAME%"
	// calledCluster is the cluster of the service and the port, as istiocompat.OutboundCluster names it.
	calledCluster = "outbound|%DOWNSTREAM_LOCAL_PORT%||" + calledService
	// clusterHeader says to the shared manager's route which cluster a request goes to. What a client says in it is replaced, and a server
	// never gets it.
	clusterHeader = "x-bulwark-cluster"
)

// httpChain takes the requests of a service's clients.
func httpChain(f *compile.Frontend) *listener.FilterChain {
	if own, ok := f.OwnRoutes(); ok {
		m := outboundManager(fmt.Sprintf("outbound_%d", f.Service.Number), f.Service.Host, frontendTags(f), own)
		return &listener.FilterChain{Name: "http", Filters: []*listener.Filter{httpManager(m)}}
	}
	return &listener.FilterChain{Name: f.Service.Host, Filters: []*listener.Filter{{Name: SharedManager,
		ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&hcm.HttpConnectionManager{})}}}}
}

// OutboundManager is the configuration of the shared manager.
func OutboundManager() *core.TypedExtensionConfig {
	m := outboundManager("outbound", calledService, clientTags(calledService, chosenServer), compile.DefaultRoutes())
	m.EarlyHeaderMutationExtensions = []*core.TypedExtensionConfig{envoy.Extension("envoy.http.early_header_mutation.header_mutation",
		&earlymutation.HeaderMutation{Mutations: []*mutation.HeaderMutation{{Action: &mutation.HeaderMutation_Append{Append: &core.HeaderValueOption{
			Header:       &core.HeaderValue{Key: clusterHeader, Value: calledCluster},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}}}}})}
	return envoy.Extension(SharedManager, m)
}

// outboundManager is between the clients of a service and those who serve it.
func outboundManager(statPrefix, service string, tags []tag, t compile.Table) *hcm.HttpConnectionManager {
	logs := []*accesslog.AccessLog{requestMetrics(tags)}
	return refusedNow(withRoutes(connectionManager(statPrefix, nil, logs, refusedServer(service)), routes(t)))
}

// refusedServer audits a server that is not one of the service's identities, also when another one answers in the end.
func refusedServer(service string) *accesslog.AccessLog {
	return audit(impostor(), outboundEntry("http", service, request()...))
}
