package relay

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the relays of a node.
type Metrics struct{ stalled prometheus.Counter }

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{stalled: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_agent_proxies_stalled_total",
		Help: "Times a proxy of this node had not taken its configuration within 30 seconds, and its stream began anew."})}
	r.MustRegister(m.stalled)
	return m
}
