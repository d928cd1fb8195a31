package feed

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Metrics of the registry and of what feeds it.
type Metrics struct {
	objects       *prometheus.GaugeVec
	unenforceable *prometheus.GaugeVec
	watchErrors   *prometheus.CounterVec
	changes       prometheus.Counter
	held          prometheus.Gauge

	badRevocations prometheus.Gauge
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "bulwark_pilot_objects", Help: "Objects in the registry."}, []string{"kind"}),
		unenforceable: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "bulwark_pilot_unenforceable_policies",
			Help: "Stored policies of which something cannot be enforced."}, []string{"kind"}),
		watchErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_pilot_watch_errors_total", Help: "Failed lists and watches."}, []string{"kind"}),
		changes:     prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_pilot_registry_changes_total", Help: "Changes of objects."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_pilot_removals_held",
			Help: "Removals held back because a list lacked most of what was there."}),
		badRevocations: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_pilot_revocations_damaged",
			Help: "1 while the list of revocations cannot be read and the last good one is in force."}),
	}
	r.MustRegister(m.badRevocations, m.objects, m.unenforceable, m.watchErrors, m.changes, m.held)
	for _, k := range registry.Kinds() {
		if k.IsPolicy() {
			m.unenforceable.WithLabelValues(k.Resource().Kind).Set(0)
		}
	}
	return m
}

// count brings the gauges up to date after changes.
func (m *Metrics) count(r *registry.Registry, changes []registry.Change) {
	m.changes.Add(float64(len(changes)))
	for _, c := range changes {
		m.objects.WithLabelValues(c.Kind.String()).Set(float64(r.Size(c.Kind)))
		m.countUnenforceable(c.Kind, c.Old, -1)
		m.countUnenforceable(c.Kind, c.New, +1)
	}
}

func (m *Metrics) countUnenforceable(k registry.Kind, object any, n float64) {
	if v, ok := k.Verdict(object); ok && len(v.Problems) > 0 {
		m.unenforceable.WithLabelValues(v.Kind).Add(n)
	}
}
