package fleet

import (
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// refsOf returns the names of endpoints or routes that a resource needs. Proxies share what they have decoded, or the
// load generator would need more of the machine than Pilot.
func (f *Fleet) refsOf(url string, r *discovery.Resource) []string {
	if url != deltaxds.ClusterType && url != deltaxds.ListenerType {
		return nil
	}
	key := r.GetName() + "@" + r.GetVersion()
	if known, ok := f.refs.Load(key); ok {
		return known.([]string)
	}
	var out []string
	if url == deltaxds.ClusterType {
		out = endpointsOf(r.GetResource().GetValue())
	} else {
		out = routesOf(r.GetResource().GetValue())
	}
	f.refs.Store(key, out)
	return out
}

func endpointsOf(value []byte) []string {
	var c cluster.Cluster
	if proto.Unmarshal(value, &c) != nil || c.GetType() != cluster.Cluster_EDS {
		return nil
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return []string{name}
	}
	return []string{c.GetName()}
}

func routesOf(value []byte) []string {
	var l listener.Listener
	if proto.Unmarshal(value, &l) != nil {
		return nil
	}
	var out []string
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(chains, d)
	}
	for _, chain := range chains {
		for _, filter := range chain.GetFilters() {
			var m hcm.HttpConnectionManager
			if any := filter.GetTypedConfig(); any.MessageIs(&m) && any.UnmarshalTo(&m) == nil && m.GetRds() != nil {
				out = append(out, m.GetRds().GetRouteConfigName())
			}
		}
	}
	return out
}
