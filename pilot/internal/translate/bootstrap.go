// Package translate turns what internal/compile worked out into Envoy's resources: one small function per concept of
// Envoy, and nothing but functions of their arguments.
package translate

import (
	"path"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metrics "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overload "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	maxconns "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Bootstrap is what an Envoy starts with: where its agent's socket is. The node's name comes from the command line.
func Bootstrap() *bootstrap.Bootstrap {
	ads := &core.ApiConfigSource{
		ApiType: core.ApiConfigSource_DELTA_GRPC, TransportApiVersion: core.ApiVersion_V3,
		GrpcServices: []*core.GrpcService{envoy.GRPCService(mesh.AgentClusterName)}, SetNodeOnFirstMessageOnly: true,
	}
	return &bootstrap.Bootstrap{
		Admin:           &bootstrap.Admin{Address: envoy.Address("127.0.0.1", mesh.ProxyAdminPort)},
		StaticResources: &bootstrap.Bootstrap_StaticResources{Clusters: []*cluster.Cluster{agentCluster()}},
		DynamicResources: &bootstrap.Bootstrap_DynamicResources{
			AdsConfig: ads, LdsConfig: overADS(), CdsConfig: overADS(),
		},
		StatsConfig: &metrics.StatsConfig{StatsMatcher: kept()},
		// Most of a mesh's clusters are never called from one pod: what they count is made when they first are.
		DeferredStatOptions: &bootstrap.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		StatsFlushInterval:  envoy.Seconds(5),
		StatsSinks: []*metrics.StatsSink{{Name: "envoy.stat_sinks.metrics_service", ConfigType: &metrics.StatsSink_TypedConfig{
			TypedConfig: envoy.Typed(&metrics.MetricsServiceConfig{GrpcService: envoy.GRPCService(mesh.AgentClusterName), TransportApiVersion: core.ApiVersion_V3,
				EmitTagsAsLabels: true, HistogramEmitMode: metrics.HistogramEmitMode_HISTOGRAM})}}},
		OverloadManager: &overload.OverloadManager{ResourceMonitors: []*overload.ResourceMonitor{{
			Name:       "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overload.ResourceMonitor_TypedConfig{TypedConfig: envoy.Typed(&maxconns.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: 50000})},
		}}},
		LayeredRuntime: &bootstrap.LayeredRuntime{Layers: []*bootstrap.RuntimeLayer{{Name: "bulwark",
			LayerSpecifier: &bootstrap.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
				// Values of policies may be long; admission bounds them.
				"re2.max_program_size.error_level": structpb.NewNumberValue(65536),
				"re2.max_program_size.warn_level":  structpb.NewNumberValue(65536),
				// The newer parser of http_inspector waits for the end of the first line, so that what is not HTTP and has no
				// lines would be held up until the inspection times out. This one knows at the first byte that no method has.
				"envoy.reloadable_features.http_inspector_use_balsa_parser": structpb.NewBoolValue(false),
				// Of a connection's first requests Envoy lets 500 be taken back within two seconds and without an answer before it closes it, with all that others have open in it:
				// calls with short deadlines to a server that is slow are so. A flood of them costs others less when its connection stays, as that has its share of the processor like
				// any other, than when it is made anew all the time.
				"overload.premature_reset_total_stream_count": structpb.NewNumberValue(1 << 50),
			}}}}}},
	}
}

// overADS has a resource come over the one stream of all configuration, which the agent relays.
func overADS() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		InitialFetchTimeout: envoy.Seconds(0), // wait: serving without the rest would be serving wrongly
	}
}

// agentCluster is the pod's socket, for everything that Envoy asks of the agent.
func agentCluster() *cluster.Cluster {
	pipe := &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: path.Join(mesh.IdentityMountPath, mesh.AgentSocket)}}}
	return &cluster.Cluster{
		Name: mesh.AgentClusterName, ConnectTimeout: envoy.Seconds(5), ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		// Every batch of the audit log that waits for the agent is a retry of up to 16 KB or so, held in memory; more are lost.
		CircuitBreakers: &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
			MaxRetries: envoy.U32(2048), MaxRequests: envoy.U32(8192), MaxPendingRequests: envoy.U32(8192)}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: envoy.Typed(explicitHTTP2())},
		LoadAssignment: &endpoint.ClusterLoadAssignment{ClusterName: mesh.AgentClusterName, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: pipe}}}}}}},
	}
}

// kept are the statistics worth their memory; Envoy makes thousands a cluster otherwise.
func kept() *metrics.StatsMatcher {
	var list []*matcher.StringMatcher
	for _, p := range []string{"istio", "server.", "listener_manager.", "cluster_manager.", "control_plane."} {
		list = append(list, envoy.Prefix(p))
	}
	for _, s := range []string{".ssl.fail_verify_san", ".ssl.fail_verify_cert_hash", ".ssl.fail_verify_error", ".ssl.fail_verify_no_cert",
		".ssl.connection_error", ".ssl.handshake", ".upstream_cx_connect_fail", ".no_filter_chain_match"} {
		list = append(list, envoy.Suffix(s))
	}
	list = append(list, &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Contains{Contains: "rbac."}})
	return &metrics.StatsMatcher{StatsMatcher: &metrics.StatsMatcher_InclusionList{InclusionList: &matcher.ListStringMatcher{Patterns: list}}}
}
