package translate_test

import (
	"fmt"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// inboundOn is the inbound listener of a workload as Pilot makes it, on a port of this machine, with what comes by discovery in
// its place and without logs. The application is behind the cluster that applicationBehind names.
func inboundOn(t *testing.T, w *compile.Workload, port uint32, revoked ...revocation.Revocation) *listener.Listener {
	t.Helper()
	return inboundBetween(t, w, w, port, revoked...)
}

// inboundBetween is inboundOn for the moment in which a proxy has taken a workload's new authorization, and its listener not yet.
func inboundBetween(t *testing.T, listens, decides *compile.Workload, port uint32, revoked ...revocation.Revocation) *listener.Listener {
	t.Helper()
	l := translate.InboundListener(aliased, listens)
	l.Name = fmt.Sprintf("inbound-%d", port)
	l.Address.GetSocketAddress().Address = "127.0.0.1"
	l.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: port}
	l.ListenerFilters, l.AccessLog = l.ListenerFilters[1:], nil // without original_dst
	for _, c := range l.GetFilterChains() {
		inlineAuthorization(t, c, decides, revoked...)
		repack(t, last(c).GetTypedConfig(), func(m any) {
			switch f := m.(type) {
			case *tcpproxy.TcpProxy:
				f.AccessLog, f.ClusterSpecifier = nil, &tcpproxy.TcpProxy_Cluster{Cluster: applicationBehind(port)}
			case *hcm.HttpConnectionManager:
				f.AccessLog = nil
				deliver(f, applicationBehind(port))
			}
		})
	}
	return l
}

// inlineShared puts what services share where a service's listener asks for it.
func inlineShared(l *listener.Listener) {
	for _, shared := range []*core.TypedExtensionConfig{translate.OutboundManager(""), translate.OutboundForward(), translate.OutboundForwardCluster("")} {
		for _, c := range l.GetFilterChains() {
			for _, f := range c.GetFilters() {
				if f.GetName() == shared.GetName() {
					f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: shared.GetTypedConfig()}
				}
			}
		}
	}
}

// deliver has the routes to the application go to a cluster.
func deliver(m *hcm.HttpConnectionManager, cluster string) {
	for _, r := range m.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
		if to := r.GetRoute(); to != nil {
			to.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: cluster}
		}
	}
}

func applicationBehind(port uint32) string { return fmt.Sprintf("application-%d", port) }

// inlineAuthorization puts the authorization resources where a chain asks for them, as an Envoy with Pilot has them, but for what closes open connections: a proxy
// has that for one workload, and these Envoys stand for several. It is tried in package push.
func inlineAuthorization(t *testing.T, c *listener.FilterChain, w *compile.Workload, revoked ...revocation.Revocation) {
	t.Helper()
	config := func(name string) *core.TypedExtensionConfig {
		if m, ok := translate.Revocations(aliased, revoked, name, translate.ModuleSent).(*core.TypedExtensionConfig); ok {
			return m
		}
		out := translate.Authorization(w, name, translate.ModuleSent)
		if out == nil {
			t.Fatalf("no authorization resource %q", name)
		}
		return out
	}
	open := func(name string) bool {
		return slices.Contains([]string{"open/connections", "open/requests", "authorization/open", "revocations/open"}, name)
	}
	c.Filters = slices.DeleteFunc(c.GetFilters(), func(f *listener.Filter) bool { return open(f.GetName()) })
	for _, f := range c.GetFilters() {
		if f.GetConfigDiscovery() != nil {
			f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: config(f.GetName()).GetTypedConfig()}
			continue
		}
		if f.GetName() != "envoy.filters.network.http_connection_manager" {
			continue
		}
		repack(t, f.GetTypedConfig(), func(m any) {
			manager := m.(*hcm.HttpConnectionManager)
			manager.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{
				RouteConfig: translate.InboundRoutes(w, len(revoked) > 0, manager.GetRds().GetRouteConfigName())}
			for _, filters := range requestFilters(manager) {
				*filters = slices.DeleteFunc(*filters, func(h *hcm.HttpFilter) bool { return open(h.GetName()) })
				for _, h := range *filters {
					if h.GetConfigDiscovery() != nil {
						h.ConfigType = &hcm.HttpFilter_TypedConfig{TypedConfig: config(h.GetName()).GetTypedConfig()}
					}
				}
			}
		})
	}
}

// requestFilters are the lists of filters of a manager: for requests that offer to go on in another protocol there is one of their own.
func requestFilters(m *hcm.HttpConnectionManager) []*[]*hcm.HttpFilter {
	out := []*[]*hcm.HttpFilter{&m.HttpFilters}
	for _, u := range m.GetUpgradeConfigs() {
		if u.Filters != nil {
			out = append(out, &u.Filters)
		}
	}
	return out
}
