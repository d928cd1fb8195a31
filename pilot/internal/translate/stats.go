package translate

import (
	"regexp"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	stats "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	transform "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/actions/transform_stat/v3"
	tagvalue "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/stats/v3"
	scope "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Environment variables of a proxy that say what it stands for. They are in its environment, not in its configuration, so
// that every proxy can share one outbound configuration. Injection sets them, to something but for the cluster's name, which
// is what the mesh's settings say.
const (
	EnvWorkload  = "BULWARK_WORKLOAD"
	EnvNamespace = "BULWARK_NAMESPACE"
	EnvCanonical = "BULWARK_CANONICAL_SERVICE"
	EnvRevision  = "BULWARK_CANONICAL_REVISION"
	EnvPrincipal = "BULWARK_PRINCIPAL"
	EnvCluster   = "BULWARK_CLUSTER"
)

const unknown = "unknown"

// MaxSeries bounds how many series of one metric a proxy keeps.
const MaxSeries = 2000

// label is a label of Istio's standard metrics; its value is a format string of Envoy.
type label struct {
	name, format string
	mayMiss      bool // what is not known is written as "unknown", which takes 260 bytes of configuration
}

func env(name string) string { return "%ENVIRONMENT(" + name + ")%" }

func ofCluster(key string) string { return "%CLUSTER_METADATA(" + metadataKey + ":" + key + ")%" }

func ofHost(key string) string { return "%UPSTREAM_METADATA(" + metadataKey + ":" + key + ")%" }

// sourceReport are the labels of a client's proxy.
func sourceReport() []label {
	return []label{
		{"reporter", "source", false},
		{"source_workload", env(EnvWorkload), false}, {"source_workload_namespace", env(EnvNamespace), false},
		{"source_canonical_service", env(EnvCanonical), false}, {"source_canonical_revision", env(EnvRevision), false},
		{"source_app", env(EnvCanonical), false}, {"source_version", env(EnvRevision), false},
		{"source_principal", env(EnvPrincipal), false}, {"source_cluster", env(EnvCluster), true},
		{"destination_service", ofCluster("service"), true}, {"destination_service_name", ofCluster("name"), true},
		{"destination_service_namespace", ofCluster("namespace"), true},
		{"destination_workload", ofHost("workload"), true}, {"destination_workload_namespace", ofHost("namespace"), true},
		{"destination_canonical_service", ofHost("canonical_service"), true},
		{"destination_canonical_revision", ofHost("canonical_revision"), true},
		{"destination_app", ofHost("canonical_service"), true}, {"destination_version", ofHost("canonical_revision"), true},
		{"destination_principal", "%UPSTREAM_PEER_URI_SAN%", true}, {"destination_cluster", env(EnvCluster), true},
		{"connection_security_policy", unknown, false},
		{"response_flags", "%RESPONSE_FLAGS%", false},
	}
}

// ofFrontend fills in what is known of the server where connections go to one address.
func ofFrontend(labels []label, f *compile.Frontend) []label {
	p := f.Service
	known := map[string]string{"destination_service": p.Host, "destination_service_name": p.Service.Name,
		"destination_service_namespace": p.Service.Namespace}
	if f.Pod != nil {
		w := f.Pod.Workload
		known["destination_workload"], known["destination_workload_namespace"] = w.Workload, w.Namespace
		known["destination_canonical_service"], known["destination_canonical_revision"] = w.CanonicalName, w.CanonicalRevision
		known["destination_app"], known["destination_version"] = w.CanonicalName, w.CanonicalRevision
	}
	for i, l := range labels {
		if value, ok := known[l.name]; ok {
			labels[i] = label{l.name, value, false} // names and labels of Kubernetes have no percent sign
		}
	}
	return labels
}

// Where the audit filter notes the name of the service by which a port is known (see rbac.ServedBy). Of a TCP connection it is
// known from the client's first byte on.
const (
	httpService = "%DYNAMIC_METADATA(envoy.filters.http.rbac:" + rbac.ServicePrefix + "shadow_effective_policy_id)%"
	tcpService  = "%DYNAMIC_METADATA(envoy.filters.network.rbac:" + rbac.ServicePrefix + "shadow_effective_policy_id)%"
)

// destinationReport are the labels of a server's proxy. Of the client it knows the verified identity alone; Mixer joins the
// rest. Service is where the name of the service is found.
func destinationReport(w *compile.Workload, service string, mutual bool) []label {
	principal, security := label{"source_principal", unknown, false}, "none"
	if mutual {
		principal, security = label{"source_principal", "%DOWNSTREAM_PEER_URI_SAN%", true}, "mutual_tls"
	}
	domain := "." + w.Class.Namespace + ".svc." + mesh.ClusterDomain
	return []label{
		{"reporter", "destination", false},
		{"source_workload", unknown, false}, {"source_workload_namespace", unknown, false},
		{"source_canonical_service", unknown, false}, {"source_canonical_revision", unknown, false},
		{"source_app", unknown, false}, {"source_version", unknown, false},
		principal, {"source_cluster", env(EnvCluster), true},
		{"destination_service", service + domain, true}, {"destination_service_name", service, true},
		{"destination_service_namespace", w.Class.Namespace, false},
		{"destination_workload", env(EnvWorkload), false}, {"destination_workload_namespace", w.Class.Namespace, false},
		{"destination_canonical_service", env(EnvCanonical), false}, {"destination_canonical_revision", env(EnvRevision), false},
		{"destination_app", env(EnvCanonical), false}, {"destination_version", env(EnvRevision), false},
		{"destination_principal", w.Identity, false}, {"destination_cluster", env(EnvCluster), true},
		{"connection_security_policy", security, false},
		{"response_flags", "%RESPONSE_FLAGS%", false},
	}
}

// requestMetrics count requests and time them.
func requestMetrics(labels []label) *accesslog.AccessLog {
	labels = append(labels, label{"request_protocol", "%PROTOCOL%", true}, label{"response_code", "%RESPONSE_CODE%", true},
		label{"grpc_response_status", "%GRPC_STATUS_NUMBER%", false})
	return statsLogger(nil, &stats.Config{
		Counters: []*stats.Config_Counter{{Stat: stat("requests_total", labels), ValueFixed: wrapperspb.UInt64(1)}},
		Histograms: []*stats.Config_Histogram{{Stat: stat("request_duration_milliseconds", labels),
			Unit: stats.Config_Histogram_Milliseconds, ValueFormat: "%DURATION%"}},
	})
}

// reached is what a connection is that got as far as the other side: then the handshakes on both sides have ended. Before that, the name
// in a certificate is what anybody has written into one, and must become no label.
const reached = `upstream.address != '' && upstream.transport_failure_reason == ''`

// connectionMetrics count connections, one logger for their beginning and one for their end.
func connectionMetrics(labels []label) []*accesslog.AccessLog {
	labels = append(labels, label{"request_protocol", "tcp", false})
	count := func(name string) *stats.Config_Counter {
		return &stats.Config_Counter{Stat: stat(name, labels), ValueFixed: wrapperspb.UInt64(1)}
	}
	bytes := func(name, format string) *stats.Config_Counter {
		return &stats.Config_Counter{Stat: stat(name, labels), ValueFormat: format}
	}
	return []*accesslog.AccessLog{
		statsLogger(logType(data.AccessLogType_TcpUpstreamConnected), &stats.Config{Counters: []*stats.Config_Counter{count("tcp_connections_opened_total")}}),
		statsLogger(atEnd(when(reached)), &stats.Config{Counters: []*stats.Config_Counter{
			count("tcp_connections_closed_total"), bytes("tcp_sent_bytes_total", "%BYTES_SENT%"), bytes("tcp_received_bytes_total", "%BYTES_RECEIVED%")}}),
	}
}

func statsLogger(filter *accesslog.AccessLogFilter, c *stats.Config) *accesslog.AccessLog {
	c.StatsScope = &scope.Scope{Prefix: "istio", MaxCounters: u32(MaxSeries), MaxHistograms: u32(MaxSeries)}
	return &accesslog.AccessLog{Name: "envoy.access_loggers.stats", Filter: filter, ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: envoy.Typed(c)}}
}

func stat(name string, labels []label) *stats.Config_Stat {
	s := &stats.Config_Stat{Name: name}
	for _, l := range labels {
		t := &stats.Config_Tag{Name: l.name, ValueFormat: l.format}
		if l.mayMiss {
			t.Rules = replaced(command.ReplaceAllString(l.format, ""), unknown)
		}
		s.Tags = append(s.Tags, t)
	}
	return s
}

// command is what Envoy fills in, by nothing where there is nothing to tell.
var command = regexp.MustCompile(`%[^%]*%`)

// replaced writes one value of a label as another.
func replaced(value, by string) *xds.Matcher {
	found := &xds.Matcher_MatcherList_Predicate{MatchType: &xds.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &xds.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: &xdscore.TypedExtensionConfig{Name: "value", TypedConfig: envoy.Typed(&tagvalue.StatTagValueInput{})},
			Matcher: &xds.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{
				ValueMatch: &xds.StringMatcher{MatchPattern: &xds.StringMatcher_Exact{Exact: value}}},
		}}}
	update := &transform.TransformStat{UpdateTag: &transform.TransformStat_UpdateTag{NewTagValue: by}}
	return &xds.Matcher{MatcherType: &xds.Matcher_MatcherList_{MatcherList: &xds.Matcher_MatcherList{
		Matchers: []*xds.Matcher_MatcherList_FieldMatcher{{Predicate: found, OnMatch: &xds.Matcher_OnMatch{
			OnMatch: &xds.Matcher_OnMatch_Action{Action: &xdscore.TypedExtensionConfig{Name: by, TypedConfig: envoy.Typed(update)}}}}}}}}
}
