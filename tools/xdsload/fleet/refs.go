package fleet

import (
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// ref is a resource that another needs.
type ref struct{ url, name string }

// refsOf returns what a resource needs. Proxies share what they have decoded, or the load generator would need more of
// the machine than Pilot.
func (f *Fleet) refsOf(url string, r *discovery.Resource) []ref {
	if !wildcard(url) {
		return nil
	}
	key := r.GetName() + "@" + r.GetVersion()
	if known, ok := f.refs.Load(key); ok {
		return known.([]ref)
	}
	var out []ref
	if url == deltaxds.ClusterType {
		out = endpointsOf(r.GetResource().GetValue())
	} else {
		out = ofListener(r.GetResource().GetValue())
	}
	f.refs.Store(key, out)
	return out
}

func endpointsOf(value []byte) []ref {
	var c cluster.Cluster
	if proto.Unmarshal(value, &c) != nil || c.GetType() != cluster.Cluster_EDS {
		return nil
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return []ref{{deltaxds.EndpointType, name}}
	}
	return []ref{{deltaxds.EndpointType, c.GetName()}}
}

// ofListener finds the routes and the filters that are configured apart from the listener.
func ofListener(value []byte) []ref {
	var l listener.Listener
	if proto.Unmarshal(value, &l) != nil {
		return nil
	}
	var out []ref
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(chains, d)
	}
	for _, chain := range chains {
		for _, filter := range chain.GetFilters() {
			if filter.GetConfigDiscovery() != nil {
				out = append(out, ref{deltaxds.ExtensionConfigType, filter.GetName()})
			}
			var m hcm.HttpConnectionManager
			if any := filter.GetTypedConfig(); !any.MessageIs(&m) || any.UnmarshalTo(&m) != nil {
				continue
			}
			if m.GetRds() != nil {
				out = append(out, ref{deltaxds.RouteType, m.GetRds().GetRouteConfigName()})
			}
			for _, inner := range m.GetHttpFilters() {
				if inner.GetConfigDiscovery() != nil {
					out = append(out, ref{deltaxds.ExtensionConfigType, inner.GetName()})
				}
			}
		}
	}
	return out
}
