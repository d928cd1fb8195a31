package translate

import (
	"slices"
	"strconv"

	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// routes are a table in Envoy's words.
func routes(t compile.Table) *route.RouteConfiguration {
	out := table(t.Name)
	for _, h := range t.Hosts {
		host := &route.VirtualHost{Name: h.Name, Domains: h.Domains, RequestHeadersToAdd: []*core.HeaderValueOption{offer()}}
		if h.Retried { // for all forms of its routes at once, as each that has a policy makes it anew, in each listener
			host.RetryPolicy = retries()
		}
		for _, r := range h.Rules {
			host.Routes = append(host.Routes, forms(rule(r))...)
		}
		out.VirtualHosts = append(out.VirtualHosts, host)
	}
	return out
}

// table has no routes yet. What the proxy has noted for itself leaves it with no request: it is removed last, when a host has put back what was noted.
func table(name string) *route.RouteConfiguration {
	return &route.RouteConfiguration{Name: name, ValidateClusters: envoy.No(), RequestHeadersToRemove: []string{formHeader, offerHeader}}
}

func rule(r compile.Rule) *route.Route {
	action := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: r.Cluster},
		// Applications set their own. A gRPC call's deadline (grpc-timeout) is its client's and its server's to keep: a proxy that kept it, too, could find out before the client, and of a call
		// whose answer has begun could only reset the stream, which is another error.
		Timeout: envoy.Seconds(0),
	}
	out := &route.Route{
		Name:   r.Name,
		Match:  &route.RouteMatch{PathSpecifier: ofPaths()},
		Action: &route.Route_Route{Route: action},
	}
	if r.Cluster == "" {
		action.ClusterSpecifier = &route.RouteAction_ClusterHeader{ClusterHeader: clusterHeader}
	}
	return out
}

// formHeader tells a proxy's routes in which form a request's target came: after the protocol it has the scheme, which at first only a target in absolute form has. What a
// client says in it is replaced, and a server never gets it.
const formHeader = "x-bulwark-form"

// notedForm notes it, before Envoy gives each request a scheme.
func notedForm() *mutation.HeaderMutation { return overwritten(formHeader, "%PROTOCOL%%REQ(:SCHEME)%") }

// forms are the routes by which requests go on as they came, whichever the form of their target (RFC 9112, section 3.2), as applications that are forward proxies
// need it: a target in absolute form, the path that most have, and the authority that CONNECT has. Of a target in asterisk form Envoy reads nothing.
func forms(origin *route.Route) []*route.Route {
	absolute, tunnel := proto.CloneOf(origin), proto.CloneOf(origin)
	absolute.Match.Headers = append(absolute.Match.Headers, &route.HeaderMatcher{Name: formHeader, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: envoy.Prefix("HTTP/1.1http")}})
	absolute.GetRoute().PathRewrite = "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ:PATH)%" // Envoy adds the query
	tunnel.Match.PathSpecifier = ofTunnels()
	return []*route.Route{absolute, origin, tunnel}
}

func ofTunnels() *route.RouteMatch_ConnectMatcher_ {
	return &route.RouteMatch_ConnectMatcher_{ConnectMatcher: &route.RouteMatch_ConnectMatcher{}}
}

func ofPaths() *route.RouteMatch_Prefix { return &route.RouteMatch_Prefix{Prefix: "/"} }

// retries are of what certainly did not reach an application.
func retries() *route.RetryPolicy {
	return &route.RetryPolicy{
		RetryOn: "connect-failure,refused-stream,reset-before-request", NumRetries: envoy.U32(2),
		RetryHostPredicate:            []*route.RetryPolicy_RetryHostPredicate{previousHosts()},
		HostSelectionRetryMaxAttempts: 5,
	}
}

// The tables of the requests that come to a workload: over mutual TLS, and in plaintext. They come by themselves (RDS), as what they say follows
// policies and Services, for which no connection may be drained.
const (
	mutualTable    = "inbound-tls"
	plaintextTable = "inbound-plaintext"
)

// InboundTables are the names of a workload's tables.
func InboundTables() []string { return []string{mutualTable, plaintextTable} }

// inboundTable is the name of that which connections over mutual TLS have, or others.
func inboundTable(mutual bool) string {
	if mutual {
		return mutualTable
	}
	return plaintextTable
}

// InboundRoutes hand everything to the application that says properly which host it is for. A route has the name of the service by which the
// port is known, for metrics, and none if there is no such service. The filters that have nothing to say are not asked, nor even made, for a request;
// revoked says whether anything is. A filter that a table does not name is asked: a table that is older than a policy only has it hold later.
func InboundRoutes(w *compile.Workload, revoked bool, name string) *route.RouteConfiguration {
	host := &route.VirtualHost{Name: "inbound", Domains: []string{"*"}, RequestBodyBufferLimit: wrapperspb.UInt64(bodyShown), TypedPerFilterConfig: off(silentFilters(w, revoked, name == mutualTable)),
		Routes: []*route.Route{badAuthority(&route.RouteMatch{PathSpecifier: ofPaths()}), badAuthority(&route.RouteMatch{PathSpecifier: ofTunnels()})}}
	out := table(name)
	out.VirtualHosts = []*route.VirtualHost{host}
	application := rule(compile.Rule{Cluster: InboundCluster})
	suspicions, quiet := suspicious(w, name == mutualTable)
	if len(w.Ports)*len(suspicions) > maxSuspicious {
		suspicions, quiet = nil, nil
	}
	add := func(to *route.Route) {
		for _, form := range forms(to) {
			tunnel := form.GetMatch().GetConnectMatcher() != nil
			if !tunnel {
				for _, a := range suspicions {
					asked := proto.CloneOf(form)
					asked.Match.Headers = append(asked.Match.Headers, rbac.Suspicious(a))
					host.Routes = append(host.Routes, asked)
				}
			}
			if len(quiet) > 0 && !tunnel {
				form.TypedPerFilterConfig = off(quiet)
			}
			host.Routes = append(host.Routes, form)
		}
	}
	for _, p := range w.Ports {
		if p.ServiceName != "" {
			known := proto.CloneOf(application)
			known.Name = p.ServiceName
			known.Match.FilterState = []*matcher.FilterStateMatcher{{Key: portKey, Matcher: &matcher.FilterStateMatcher_StringMatch{
				StringMatch: envoy.Exact(strconv.FormatUint(uint64(p.Number), 10))}}}
			add(known)
		}
	}
	add(application)
	return out
}

// bodyShown is how much of a request's body is held back for an external authorizer, in bytes: the most that a provider may ask for, and what may come at once.
const bodyShown = authorizer.MaxBody + 1<<17

// maxSuspicious bounds the routes for suspicious requests, each of which is tried for a request to the last port; with more it is cheaper to ask the filter.
const maxSuspicious = 8

// SameInboundRoutes reports whether two workloads have the same tables, without making them.
func SameInboundRoutes(a, b *compile.Workload) bool {
	return a.Other == b.Other && slices.Equal(a.Ports, b.Ports) && slices.Equal(silentFilters(a, false, true), silentFilters(b, false, true)) && sameSuspicions(a, b)
}

func sameSuspicions(a, b *compile.Workload) bool {
	x, quietX := suspicious(a, true)
	y, quietY := suspicious(b, true)
	return slices.Equal(quietX, quietY) && slices.EqualFunc(x, y, func(p, q authz.Ambiguity) bool { return p.Rule == q.Rule })
}

// portKey is where a connection's port is noted, by which routes are told apart.
const portKey = "bulwark.port"

// notedPort notes the port when the connection comes.
func notedPort() *filterstate.FilterStateValue { return noted(portKey, "%DOWNSTREAM_LOCAL_PORT%") }

func previousHosts() *route.RetryPolicy_RetryHostPredicate {
	return &route.RetryPolicy_RetryHostPredicate{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: envoy.Typed(&previoushosts.PreviousHostsPredicate{})}}
}
