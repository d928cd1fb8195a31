package push

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Metrics of the discovery service.
type Metrics struct {
	connections prometheus.Gauge
	recomputes  prometheus.Counter
	marshals    prometheus.Counter
	updates     prometheus.Counter
	pushed      *prometheus.CounterVec
	refused     *prometheus.CounterVec
	stalled     *prometheus.CounterVec
	convergence prometheus.Histogram
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Proxies connected to agents that are connected."}),
		recomputes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulwark_pilot_resource_recomputes_total", Help: "Resources made from the registry."}),
		marshals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulwark_pilot_resource_marshals_total", Help: "Resources marshalled; each is shared by all nodes that take it."}),
		updates: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_pilot_node_updates_total", Help: "Updates sent to agents."}),
		pushed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulwark_pilot_resources_sent_total", Help: "Resources sent."}, []string{"type"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulwark_pilot_proxies_refused_total", Help: "Agents and pods refused."}, []string{"reason"}),
		stalled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_pilot_proxies_stalled_total",
			Help: "Times a proxy had not taken what was sent to it within 30 seconds, and its stream began anew."}, []string{"type"}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_proxy_convergence_time",
			Help: "Seconds from a change in the registry to its being sent to an agent.", Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 3, 5, 10, 30}}),
	}
	r.MustRegister(m.connections, m.recomputes, m.marshals, m.updates, m.pushed, m.refused, m.stalled, m.convergence)
	for _, typ := range shortNames { // there from the beginning, so that the first is an increase
		m.stalled.WithLabelValues(typ)
	}
	m.stalled.WithLabelValues("node")
	return m
}

var shortNames = map[string]string{
	deltaxds.ClusterType: "cds", deltaxds.EndpointType: "eds", deltaxds.ListenerType: "lds", deltaxds.RouteType: "rds",
	deltaxds.ExtensionConfigType: "ecds",
}

func short(typeURL string) string {
	if s, ok := shortNames[typeURL]; ok {
		return s
	}
	return "other"
}
