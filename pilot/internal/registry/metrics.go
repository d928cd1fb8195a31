package registry

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the registry.
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
			Help: "Stored policies of which something cannot be enforced; they fail closed."}, []string{"kind"}),
		watchErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_pilot_watch_errors_total", Help: "Failed lists and watches."}, []string{"kind"}),
		changes:     prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_pilot_registry_changes_total", Help: "Changes of objects."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_pilot_removals_held",
			Help: "Removals held back because a list lacked most of what was there."}),
		badRevocations: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_pilot_revocations_damaged",
			Help: "1 while the list of revocations cannot be read and the last good one is in force."}),
	}
	r.MustRegister(m.badRevocations, m.objects, m.unenforceable, m.watchErrors, m.changes, m.held)
	return m
}

// count brings the gauges up to date after changes; policies are looked through only when one of them changed.
func (m *Metrics) count(r *Registry, changes []Change) {
	policies := false
	for _, c := range changes {
		m.objects.WithLabelValues(string(c.Kind)).Set(float64(r.Size(c.Kind)))
		policies = policies || c.Kind == Policies || c.Kind == PeerAuths || c.Kind == JWTRules
	}
	if !policies {
		return
	}
	bad := map[string]int{"AuthorizationPolicy": 0, "PeerAuthentication": 0, "RequestAuthentication": 0}
	for _, u := range Unenforceable(r.Snapshot()) {
		bad[u.Kind]++
	}
	for kind, n := range bad {
		m.unenforceable.WithLabelValues(kind).Set(float64(n))
	}
}
