package translate

import (
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
)

// routes are a table in Envoy's words.
func routes(t compile.Table) *route.RouteConfiguration {
	out := &route.RouteConfiguration{Name: t.Name, ValidateClusters: envoy.No()}
	for _, h := range t.Hosts {
		host := &route.VirtualHost{Name: h.Name, Domains: h.Domains}
		for _, r := range h.Rules {
			host.Routes = append(host.Routes, rule(r))
		}
		out.VirtualHosts = append(out.VirtualHosts, host)
	}
	return out
}

func rule(r compile.Rule) *route.Route {
	action := &route.RouteAction{
		ClusterSpecifier:  &route.RouteAction_Cluster{Cluster: r.Cluster},
		Timeout:           envoy.Seconds(0), // applications set their own
		MaxStreamDuration: &route.RouteAction_MaxStreamDuration{MaxStreamDuration: envoy.Seconds(0), GrpcTimeoutHeaderMax: envoy.Seconds(0)},
	}
	if r.Retried {
		action.RetryPolicy = retries()
	}
	out := &route.Route{
		Name:   r.Name,
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: action},
	}
	if r.Cluster == "" {
		action.ClusterSpecifier = &route.RouteAction_ClusterHeader{ClusterHeader: clusterHeader}
		out.RequestHeadersToRemove = []string{clusterHeader}
	}
	return out
}

// retries are of what certainly did not reach an application.
func retries() *route.RetryPolicy {
	return &route.RetryPolicy{
		RetryOn: "connect-failure,refused-stream,reset-before-request", NumRetries: envoy.U32(2),
		RetryHostPredicate:            []*route.RetryPolicy_RetryHostPredicate{previousHosts()},
		HostSelectionRetryMaxAttempts: 5,
	}
}

// inboundRoutes hand everything to the application that says properly which host it is for.
func inboundRoutes() *route.RouteConfiguration {
	out := routes(compile.Table{Name: InboundCluster, Hosts: []compile.VirtualHost{{
		Name: "inbound", Domains: []string{"*"}, Rules: []compile.Rule{{Name: "default", Cluster: InboundCluster}}}}})
	host := out.VirtualHosts[0]
	host.Routes = append([]*route.Route{badAuthority()}, host.Routes...)
	return out
}

func previousHosts() *route.RetryPolicy_RetryHostPredicate {
	return &route.RetryPolicy_RetryHostPredicate{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: envoy.Typed(&previoushosts.PreviousHostsPredicate{})}}
}
