package identity

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Metrics are those of all identities of a node.
type Metrics struct {
	Failures *prometheus.CounterVec
	First    prometheus.Histogram
	Skew     prometheus.Gauge
}

// NewMetrics returns metrics that belong to no registry yet.
func NewMetrics() *Metrics {
	return &Metrics{
		Failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulwark_agent_svid_failures_total", Help: "Attempts to get a pod's certificate that failed, by gRPC code; NoToken is kubelet's part.",
		}, []string{"code"}),
		First: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulwark_agent_first_svid_seconds", Help: "Time from kubelet's word that a pod starts to the pod's first certificate.",
			Buckets: []float64{0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5, 30},
		}),
		Skew: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulwark_agent_clock_skew_seconds", Help: "By how much the node's clock is ahead of Citadel's, as the last certificate shows; five minutes either way are borne.",
		}),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(reg prometheus.Registerer) { reg.MustRegister(m.Failures, m.First, m.Skew) }

// muchSkew is when a node's clock is worth a word: nobody who keeps it by NTP has that.
const muchSkew = time.Minute

// compareClocks reads from a certificate that has just been issued what time it is at Citadel.
func (i *Issuer) compareClocks(got *x509svid.SVID, p *Identity) {
	skew := i.Clock.Now().Sub(got.Certificates[0].NotBefore.Add(mesh.Backdate))
	i.Metrics.Skew.Set(skew.Seconds())
	if skew.Abs() > muchSkew {
		i.Log.Warn("the clock of this node is wrong, or Citadel's is: is it kept by NTP?", "ahead", skew.Round(time.Second).String(), "pod", p.String())
	}
}
