package translate

import (
	"fmt"
	"slices"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// OutboundRoutes are the routes of a port for the clients of a namespace: one virtual host per service, by every name by
// which a client may call it. The names are the service's own, so no namespace can take another's.
func OutboundRoutes(port uint32, namespace string, services []*registry.Service) *route.RouteConfiguration {
	rc := &route.RouteConfiguration{Name: fmt.Sprint(port), ValidateClusters: no(), MaxDirectResponseBodySizeBytes: u32(4096)}
	taken, retry := map[string]bool{"*": true}, retries()
	for _, s := range services {
		host := compile.Host(s)
		vh := &route.VirtualHost{Name: fmt.Sprintf("%s:%d", host, port), RequireTls: route.VirtualHost_NONE}
		for _, d := range domains(s, namespace, port) {
			if !taken[d] { // Envoy refuses a table that has a name twice
				taken[d] = true
				vh.Domains = append(vh.Domains, d)
			}
		}
		if len(vh.Domains) == 0 {
			continue
		}
		vh.Routes = []*route.Route{to(istiocompat.OutboundCluster(port, "", host), "default", retry)}
		rc.VirtualHosts = append(rc.VirtualHosts, vh)
	}
	rc.VirtualHosts = append(rc.VirtualHosts, &route.VirtualHost{Name: "allow_any", Domains: []string{"*"},
		Routes: []*route.Route{to(PassthroughCluster, "allow_any", nil)}})
	return rc
}

// domains are the names of a service for a client of the namespace, each with and without the port.
func domains(s *registry.Service, namespace string, port uint32) []string {
	full := compile.Host(s)
	names := []string{full, s.Name + "." + s.Namespace + ".svc", s.Name + "." + s.Namespace}
	if s.Namespace == namespace {
		names = append(names, s.Name)
	}
	names = append(names, s.ClusterIPs...)
	if s.Headless {
		names = append(names, "*."+full, "*."+s.Name+"."+s.Namespace+".svc", "*."+s.Name+"."+s.Namespace)
		if s.Namespace == namespace {
			names = append(names, "*."+s.Name)
		}
	}
	suffix := fmt.Sprintf(":%d", port)
	var out []string
	for _, n := range names {
		if slices.Contains(s.ClusterIPs, n) && isIPv6(n) {
			n = "[" + n + "]"
		}
		out = append(out, n, n+suffix)
	}
	return append(out, full+".", full+"."+suffix)
}

func isIPv6(s string) bool {
	for _, c := range s {
		if c == ':' {
			return true
		}
	}
	return false
}

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

// InboundRoutes hand everything to the application.
func InboundRoutes(port uint32) *route.RouteConfiguration {
	name := InboundName(port)
	return &route.RouteConfiguration{Name: name, ValidateClusters: no(), VirtualHosts: []*route.VirtualHost{{
		Name: fmt.Sprintf("inbound|http|%d", port), Domains: []string{"*"}, Routes: []*route.Route{to(name, "default", nil)}}}}
}

func previousHosts() *route.RetryPolicy_RetryHostPredicate {
	return &route.RetryPolicy_RetryHostPredicate{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: typed(&previoushosts.PreviousHostsPredicate{})}}
}
