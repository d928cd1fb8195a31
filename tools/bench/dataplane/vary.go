package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	earlymutation "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// variation takes one thing from a captured configuration, so that what it costs can be seen. Each of its functions changes one
// part of the configuration in place, wherever that part is; nil leaves it as it is.
type variation struct {
	name, without string // what is not there any more
	manager       func(*hcm.HttpConnectionManager)
	routes        func(*route.RouteConfiguration)
	forward       func(*tcpproxy.TcpProxy)
	listener      func(*listener.Listener)
	chain         func(*listener.FilterChain)
	rules         func(*rbac.RBAC) // that are enforced, of one filter
	cluster       func(*cluster.Cluster)
	bootstrap     func(map[string]any)
}

var variations = []variation{
	{name: "telemetry", without: "access loggers and the sink of statistics", bootstrap: noSink,
		manager:  func(m *hcm.HttpConnectionManager) { m.AccessLog = nil; noAttempts(m) },
		forward:  func(t *tcpproxy.TcpProxy) { t.AccessLog = nil },
		listener: func(l *listener.Listener) { l.AccessLog = nil }},
	{name: "metrics", without: "loggers that count, and the sink of statistics", bootstrap: noSink,
		manager: func(m *hcm.HttpConnectionManager) { m.AccessLog = loggers(m.AccessLog, false) },
		forward: func(t *tcpproxy.TcpProxy) { t.AccessLog = loggers(t.AccessLog, false) }},
	{name: "audit", without: "loggers that audit",
		manager: func(m *hcm.HttpConnectionManager) { m.AccessLog = loggers(m.AccessLog, true); noAttempts(m) },
		forward: func(t *tcpproxy.TcpProxy) { t.AccessLog = loggers(t.AccessLog, true) }},
	{name: "authorization", without: "filters that decide by policies and revocations", manager: noFilters("authorization/", "revocations/", "open/"), routes: unnamed("authorization/", "revocations/"),
		chain: noNetworkFilters("authorization/", "revocations/", "open/")},
	{name: "revocations", without: "the filter of revocations", manager: noFilters("revocations/"), routes: unnamed("revocations/"), chain: noNetworkFilters("revocations/")},
	{name: "audit-filter", without: "the filter of AUDIT policies and of a port's service", manager: noFilters("authorization/http/audit"), routes: unnamed("authorization/http/audit"),
		chain: noNetworkFilters("authorization/tcp/audit")},
	{name: "deny-filter", without: "the filter of DENY policies", manager: noFilters("authorization/http/deny"), routes: unnamed("authorization/http/deny"), chain: noNetworkFilters("authorization/tcp/deny")},
	{name: "allow-filter", without: "the filter of ALLOW policies", manager: noFilters("authorization/http/allow"), routes: unnamed("authorization/http/allow"), chain: noNetworkFilters("authorization/tcp/allow")},
	{name: "open", without: "the filters that end what is open and forbidden by new policies", manager: noFilters("open/", "authorization/open", "revocations/open"), chain: noNetworkFilters("open/")},
	{name: "open-requests", without: "the filter that knows of requests for that", manager: noFilters("open/requests")},
	{name: "ambiguity", without: "the denial of ambiguous paths", rules: func(enforced *rbac.RBAC) {
		delete(enforced.GetPolicies(), authz.AmbiguousPathRule)
	}},
	{name: "authority", without: "the check of what a request's authority is", routes: func(rc *route.RouteConfiguration) {
		for _, h := range rc.GetVirtualHosts() {
			h.Routes = slices.DeleteFunc(h.Routes, func(r *route.Route) bool { return r.GetDirectResponse() != nil })
		}
	}},
	{name: "certificate-header", without: "the client's certificate as a header", manager: func(m *hcm.HttpConnectionManager) {
		m.ForwardClientCertDetails, m.SetCurrentClientCertDetails = hcm.HttpConnectionManager_SANITIZE, nil
	}},
	{name: "request-id", without: "request IDs", manager: func(m *hcm.HttpConnectionManager) { m.GenerateRequestId = wrapperspb.Bool(false) }},
	{name: "timers", without: "time limits of streams and headers", manager: func(m *hcm.HttpConnectionManager) {
		m.RequestHeadersTimeout, m.StreamIdleTimeout = nil, durationpb.New(0)
	}},
	{name: "windows", without: "bounds of what HTTP/2 may have on its way, so that Envoy's larger ones hold", manager: func(m *hcm.HttpConnectionManager) {
		if o := m.GetHttp2ProtocolOptions(); o != nil {
			o.InitialStreamWindowSize, o.InitialConnectionWindowSize = nil, nil
		}
	}},
	{name: "retries", without: "retries", routes: func(rc *route.RouteConfiguration) {
		for _, h := range rc.GetVirtualHosts() {
			h.RetryPolicy = nil
		}
	}},
	{name: "forms", without: "the note of the form of a request's target, and the routes for other forms than paths", manager: noForms, routes: func(rc *route.RouteConfiguration) {
		for _, h := range rc.GetVirtualHosts() {
			h.Routes = slices.DeleteFunc(h.Routes, func(r *route.Route) bool {
				return r.GetRoute().GetPathRewrite() != "" || r.GetMatch().GetConnectMatcher() != nil
			})
		}
	}},
	{name: "serial", without: "the notes of the peer, its certificate's serial number and the port", chain: noNetworkFilters("envoy.filters.network.set_filter_state")},
	{name: "http1-between", without: "HTTP/1.1 between the proxies: they speak HTTP/2, and HTTP/1.1 with the application (for HTTP/1.1 alone)", cluster: func(c *cluster.Cluster) {
		options := &upstreams.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{}}
		if c.GetType() == cluster.Cluster_EDS {
			options.ProtocolConfig = &upstreams.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{}
		}
		for name := range c.GetTypedExtensionProtocolOptions() {
			packed, err := anypb.New(&upstreams.HttpProtocolOptions{UpstreamProtocolOptions: &upstreams.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: options}})
			if err == nil { // what is made here can be written
				c.TypedExtensionProtocolOptions[name] = packed
			}
		}
	}},
	{name: "statistics", without: "all of Envoy's statistics", bootstrap: func(b map[string]any) {
		b["statsConfig"] = map[string]any{"statsMatcher": map[string]any{"rejectAll": true}}
	}},
}

// Variations say what may be taken away, a line each.
func Variations() string {
	var out strings.Builder
	for _, v := range variations {
		fmt.Fprintf(&out, "  %-20s %s\n", v.name, v.without)
	}
	return out.String()
}

// named are the variations of a list of names that plus signs join.
func named(list string) (out []variation, err error) {
	for name := range strings.SplitSeq(list, "+") {
		i := slices.IndexFunc(variations, func(v variation) bool { return v.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no variation %q; these are:\n%s", name, Variations())
		}
		out = append(out, variations[i])
	}
	return out, nil
}

// vary returns the configuration without what the variations take away, and notes the names of those that have changed anything.
func vary(r resources, by []variation, varied map[string]bool) (resources, error) {
	out := maps.Clone(r)
	for _, url := range []string{deltaxds.ClusterType, deltaxds.ListenerType, deltaxds.RouteType, deltaxds.ExtensionConfigType} {
		out[url] = map[string]*deltaxds.Resource{}
		for name, res := range r[url] {
			msg, err := res.Body().UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", name, err)
			}
			for _, v := range by {
				before := proto.Clone(msg)
				if err := v.apply(name, msg); err != nil {
					return nil, fmt.Errorf("resource %s: %w", name, err)
				}
				if !proto.Equal(before, msg) {
					varied[v.name] = true
				}
			}
			if out[url][name], err = deltaxds.NewResource(name, msg); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (v variation) apply(name string, msg proto.Message) error {
	switch m := msg.(type) {
	case *core.TypedExtensionConfig:
		return v.applyTo(name, m.GetTypedConfig())
	case *hcm.HttpConnectionManager:
		do(v.manager, m)
		if inline := m.GetRouteConfig(); inline != nil {
			do(v.routes, inline)
		}
	case *cluster.Cluster:
		do(v.cluster, m)
	case *route.RouteConfiguration:
		do(v.routes, m)
	case *tcpproxy.TcpProxy:
		do(v.forward, m)
	case *httprbac.RBAC:
		do(v.rules, m.GetRules())
	case *netrbac.RBAC:
		do(v.rules, m.GetRules())
	case *listener.Listener:
		do(v.listener, m)
		chains := m.GetFilterChains()
		if last := m.GetDefaultFilterChain(); last != nil {
			chains = append(slices.Clone(chains), last)
		}
		for _, chain := range chains {
			do(v.chain, chain)
			for _, filter := range chain.GetFilters() {
				if err := v.applyTo(filter.GetName(), filter.GetTypedConfig()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// applyTo changes a packed message, and leaves it where it is of no type that any variation knows.
func (v variation) applyTo(name string, packed *anypb.Any) error {
	msg, err := packed.UnmarshalNew()
	switch {
	case packed == nil || errors.Is(err, protoregistry.NotFound):
		return nil
	case err != nil:
		return err
	}
	before := proto.Clone(msg)
	if err := v.apply(name, msg); err != nil || proto.Equal(before, msg) {
		return err
	}
	return packed.MarshalFrom(msg)
}

func do[T any](f func(T), on T) {
	if f != nil {
		f(on)
	}
}

func noSink(bootstrap map[string]any) { delete(bootstrap, "statsSinks") }

// loggers keeps those that count, or the others.
func loggers(all []*accesslog.AccessLog, counting bool) []*accesslog.AccessLog {
	return slices.DeleteFunc(all, func(l *accesslog.AccessLog) bool { return (l.GetName() == "envoy.access_loggers.stats") != counting })
}

// noForms leaves out the first early change, which notes the form.
func noForms(m *hcm.HttpConnectionManager) {
	m.EarlyHeaderMutationExtensions = slices.DeleteFunc(m.EarlyHeaderMutationExtensions, func(e *core.TypedExtensionConfig) bool {
		var early earlymutation.HeaderMutation
		if config := e.GetTypedConfig(); config.UnmarshalTo(&early) == nil {
			early.Mutations = early.GetMutations()[1:]
			_ = config.MarshalFrom(&early) // what was read can be written
		}
		return len(early.GetMutations()) == 0 // there has to be some
	})
}

// noAttempts has the router log no attempts.
func noAttempts(m *hcm.HttpConnectionManager) {
	for _, f := range m.GetHttpFilters() {
		var r routerfilter.Router
		if config := f.GetTypedConfig(); config.MessageIs(&r) && config.UnmarshalTo(&r) == nil {
			r.UpstreamLog = nil
			_ = config.MarshalFrom(&r) // what was read can be written
		}
	}
}

func noFilters(prefixes ...string) func(*hcm.HttpConnectionManager) {
	return func(m *hcm.HttpConnectionManager) {
		m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcm.HttpFilter) bool { return begins(f.GetName(), prefixes) })
	}
}

// unnamed has routes say nothing of filters that are not there.
func unnamed(prefixes ...string) func(*route.RouteConfiguration) {
	return func(rc *route.RouteConfiguration) {
		for _, h := range rc.GetVirtualHosts() {
			gone := func(name string, _ *anypb.Any) bool { return begins(name, prefixes) }
			maps.DeleteFunc(h.GetTypedPerFilterConfig(), gone)
			for _, r := range h.GetRoutes() {
				maps.DeleteFunc(r.GetTypedPerFilterConfig(), gone)
			}
		}
	}
}

func noNetworkFilters(prefixes ...string) func(*listener.FilterChain) {
	return func(c *listener.FilterChain) {
		c.Filters = slices.DeleteFunc(c.Filters, func(f *listener.Filter) bool { return begins(f.GetName(), prefixes) })
	}
}

func begins(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
