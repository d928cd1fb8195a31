package telemetry

import (
	"strings"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	stats "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
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

// maxSeries bounds how many series of one metric a proxy keeps.
const maxSeries = 2000

// tag is a part of what tells one series from another; its value is a format string of Envoy. mesh.FoldedMetrics says what there is.
type tag struct{ name, format string }

func env(name string) string { return "%ENVIRONMENT(" + name + ")%" }

// folded is the one tag of what is counted of a service; the fields are format strings.
func folded(by, service, server, peer, outcome string) []tag {
	return []tag{{mesh.FoldedLabel, strings.Join([]string{by, service, server, peer, outcome}, mesh.FoldedSeparator)}}
}

// counted makes the tag of one side for an outcome.
type counted func(outcome string) []tag

// byClient is what a client's proxy counts of a service, by its host; server is where the server's workload is found.
func byClient(service, server string) counted {
	return func(outcome string) []tag {
		return folded(mesh.CountedByClient, service, server, "%UPSTREAM_PEER_URI_SAN%", outcome)
	}
}

// byStranger is what it counts of a host outside of the mesh.
func byStranger(host string) counted {
	return func(outcome string) []tag { return folded(mesh.CountedByClient, host, "", "", outcome) }
}

// MetadataKey is where the names of endpoints' workloads are.
const MetadataKey = "bulwark"

// ServerKey is the name under which they are there.
const ServerKey = "to"

// ChosenServer is the workload of the endpoint that was chosen.
const ChosenServer = "%UPSTREAM_METADATA(" + MetadataKey + ":" + ServerKey + ")%"

// ServerOf is where the server's workload is found of what comes by a service's listener: a pod of a headless service that is called by its
// own address is known. Names and labels of Kubernetes have no percent sign.
func ServerOf(f *compile.Frontend) string {
	if f.Pod != nil {
		return ServerName(f.Pod.Workload)
	}
	return ChosenServer
}

// ServerName is a server's workload as the agent reads it.
func ServerName(w compile.Labels) string {
	if w == (compile.Labels{}) {
		return ""
	}
	return w.Namespace + "/" + w.CanonicalName + "/" + w.CanonicalRevision
}

// Where the name of the service is found by which a port is known: requests have a route of its name (see translate.InboundRoutes), and for
// connections the audit filter notes it (see rbac.ServedBy), from the client's first byte on.
const (
	httpService = "%ROUTE_NAME%"
	tcpService  = "%DYNAMIC_METADATA(" + tcpPolicies + ":" + rbac.ServicePrefix + ruleOnTrial + ")%"
)

// byServer is what a server's proxy counts. Of the client it knows the verified identity alone; Mixer joins the rest. Service is
// where the name of the service is found.
func byServer(service string, mutual bool) counted {
	return func(outcome string) []tag {
		if !mutual {
			return folded(mesh.CountedByServerPlaintext, service, "", "", outcome)
		}
		return folded(mesh.CountedByServer, service, "", "%DOWNSTREAM_PEER_URI_SAN%", outcome)
	}
}

// requestMetrics count requests and time them. The histogram's count is not enough: of histograms Envoy pushes what came since it pushed last, so
// that what comes while the agent is away would never be counted.
func requestMetrics(by counted) *accesslog.AccessLog {
	tags := by("%RESPONSE_CODE% %RESPONSE_FLAGS% %PROTOCOL% %GRPC_STATUS_NUMBER%")
	return statsLogger(nil, &stats.Config{
		Counters: []*stats.Config_Counter{{Stat: stat("requests_total", tags), ValueFixed: wrapperspb.UInt64(1)}},
		Histograms: []*stats.Config_Histogram{{Stat: stat("request_duration_milliseconds", tags),
			Unit: stats.Config_Histogram_Milliseconds, ValueFormat: "%DURATION%"}},
	})
}

// reached is what a connection is that got as far as the other side: then the handshakes on both sides have ended. Before that, the name
// in a certificate is what anybody has written into one, and must become no label.
const reached = `upstream.address != '' && upstream.transport_failure_reason == ''`

// connectionMetrics count connections, one logger for their beginning and one for their end.
func connectionMetrics(by counted) []*accesslog.AccessLog {
	tags := by("%RESPONSE_FLAGS%")
	count := func(name string) *stats.Config_Counter {
		return &stats.Config_Counter{Stat: stat(name, tags), ValueFixed: wrapperspb.UInt64(1)}
	}
	bytes := func(name, format string) *stats.Config_Counter {
		return &stats.Config_Counter{Stat: stat(name, tags), ValueFormat: format}
	}
	return []*accesslog.AccessLog{
		statsLogger(logType(data.AccessLogType_TcpUpstreamConnected), &stats.Config{Counters: []*stats.Config_Counter{count("tcp_connections_opened_total")}}),
		statsLogger(atEnd(when(reached)), &stats.Config{Counters: []*stats.Config_Counter{
			count("tcp_connections_closed_total"), bytes("tcp_sent_bytes_total", "%BYTES_SENT%"), bytes("tcp_received_bytes_total", "%BYTES_RECEIVED%")}}),
	}
}

func statsLogger(filter *accesslog.AccessLogFilter, c *stats.Config) *accesslog.AccessLog {
	c.StatsScope = &scope.Scope{Prefix: mesh.FoldedMetrics, MaxCounters: envoy.U32(maxSeries), MaxHistograms: envoy.U32(maxSeries)}
	return &accesslog.AccessLog{Name: "envoy.access_loggers.stats", Filter: filter, ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: envoy.Typed(c)}}
}

func stat(name string, tags []tag) *stats.Config_Stat {
	s := &stats.Config_Stat{Name: name}
	for _, t := range tags {
		s.Tags = append(s.Tags, &stats.Config_Tag{Name: t.name, ValueFormat: t.format})
	}
	return s
}
