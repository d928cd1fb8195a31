package run

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/pkg/spool"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// observe makes the state of the spool and of the identities metrics.
func observe(reg prometheus.Registerer, events *spool.Spool, node *pods.Registry, own *svid.Source) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("bulwark_agent_spool_bytes", "Size of the audit spool.", func() float64 { return float64(events.Stats().Bytes) })
	gauge("bulwark_agent_spool_unacknowledged_events", "Audit events that Mixer does not have yet.", func() float64 { return float64(events.Stats().Unacked) })
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bulwark_agent_spool_lost_events_total", Help: "Audit events lost because the spool was full or the disk failed."},
		func() float64 { return float64(events.Stats().Lost) }))
	gauge("bulwark_agent_svid_expires_seconds", "Until when the mesh survives on this node if nothing is renewed: Unix time at which the first certificate ends, of a pod or of the agent.",
		func() float64 { return firstEnd(statuses(node, own)) })
	gauge("bulwark_agent_bundle_sequence", "Sequence of the trust bundle that the agent holds.", func() float64 {
		trust, _, err := own.Bundle.Current()
		if err != nil {
			return 0
		}
		return float64(trust.Sequence)
	})
	for _, state := range []svid.State{svid.Pending, svid.Valid, svid.Due, svid.Late, svid.Expired} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bulwark_agent_workloads", Help: "Pods with a socket, by the state of their identity.", ConstLabels: prometheus.Labels{"state": string(state)},
		}, func() float64 {
			n := 0
			for _, p := range node.Pods() {
				if p.Status().State == state {
					n++
				}
			}
			return float64(n)
		}))
	}
}

func statuses(node *pods.Registry, own *svid.Source) []svid.Status {
	out := []svid.Status{own.Status()}
	for _, p := range node.Pods() {
		out = append(out, p.Status())
	}
	return out
}

// firstEnd is infinite while there is no certificate: what is pending shows in its own metric.
func firstEnd(all []svid.Status) float64 {
	first := math.Inf(1)
	for _, st := range all {
		if len(st.Certificates) > 0 {
			first = min(first, float64(st.Certificates[0].NotAfter.Unix()))
		}
	}
	return first
}
