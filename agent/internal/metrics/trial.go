package metrics

import (
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// trialMetric counts decisions that policies on trial would have changed: two series of each proxy, also while there is nothing to count, so that the first
// one shows as an increase.
const trialMetric = "bulwark_authz_trial_total"

// trials are the decisions of one proxy.
type trials struct{ denied, allowed float64 }

// Tried counts a decision of a pod's proxy that policies on trial would have changed.
func (s *Sink) Tried(podUID string, would telemetryv1.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proxies[podUID]
	switch {
	case p == nil:
	case would == telemetryv1.Verdict_VERDICT_DENIED:
		p.trials.denied++
	default:
		p.trials.allowed++
	}
}

// tried is the metric of all proxies that have said whose they are.
func (s *Sink) tried() *dto.MetricFamily {
	out := &dto.MetricFamily{Name: proto.String(trialMetric), Type: dto.MetricType_COUNTER.Enum(),
		Help: proto.String("Requests and connections that would have been decided otherwise (verdict) than they were (enforced) if the policies on trial were enforced.")}
	for _, p := range s.proxies {
		if p.owner == nil {
			continue
		}
		count := func(verdict, enforced string, n float64) {
			labels := series{}
			labels.add("verdict", verdict)
			labels.add("enforced", enforced)
			labels.add("workload", p.owner.name)
			out.Metric = append(out.Metric, withPod(&dto.Metric{Label: labels, Counter: &dto.Counter{Value: proto.Float64(n)}}, p.pod.Facts))
		}
		count("denied", "allowed", p.trials.denied)
		count("allowed", "denied", p.trials.allowed)
	}
	return out
}
