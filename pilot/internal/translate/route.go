package translate

import (
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
)

func to(cluster, name string, retry *route.RetryPolicy) *route.Route {
	return &route.Route{
		Name:  name,
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster},
			Timeout:          seconds(0), // applications set their own
			MaxStreamDuration: &route.RouteAction_MaxStreamDuration{
				MaxStreamDuration: seconds(0), GrpcTimeoutHeaderMax: seconds(0)},
			RetryPolicy: retry,
		}},
	}
}

// retries are of what certainly did not reach an application.
func retries() *route.RetryPolicy {
	return &route.RetryPolicy{
		RetryOn: "connect-failure,refused-stream,reset-before-request", NumRetries: u32(2),
		RetryHostPredicate:            []*route.RetryPolicy_RetryHostPredicate{previousHosts()},
		HostSelectionRetryMaxAttempts: 5,
	}
}

// inboundRoutes hand everything to the application that says properly which host it is for.
func inboundRoutes() *route.RouteConfiguration {
	return &route.RouteConfiguration{Name: InboundCluster, ValidateClusters: no(), VirtualHosts: []*route.VirtualHost{{
		Name: "inbound", Domains: []string{"*"}, Routes: []*route.Route{badAuthority(), to(InboundCluster, "default", nil)}}}}
}

func previousHosts() *route.RetryPolicy_RetryHostPredicate {
	return &route.RetryPolicy_RetryHostPredicate{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: typed(&previoushosts.PreviousHostsPredicate{})}}
}
