package metrics

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

const (
	reportEvery   = 5 * time.Second
	reportTimeout = 10 * time.Second
	maxReported   = 8000 // counters in one report, which has to fit into one message
)

// Reporter tells Mixer what the node's proxies counted and which certificates its pods hold.
type Reporter struct {
	Sink *Sink
	Pods func() []*identity.Identity
	Node string
	Conn grpc.ClientConnInterface
	Log  *slog.Logger
}

// Run reports until ctx ends. A report holds the latest values, so one that is lost costs nothing.
func (r *Reporter) Run(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier, retry.RandomizationFactor = 500*time.Millisecond, 15*time.Second, 2, 0.5
	for ctx.Err() == nil {
		sent, err := r.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if sent {
			retry.Reset()
		}
		wait := retry.NextBackOff()
		r.Log.Info("reports to Mixer interrupted", "error", err, "retryIn", wait.String())
		if !pause(ctx, wait) {
			return
		}
	}
}

func (r *Reporter) stream(ctx context.Context) (sent bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := telemetryv1.NewIntakeClient(r.Conn).Counters(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		if err := stream.Send(r.report()); err != nil {
			return sent, err
		}
		overdue := time.AfterFunc(reportTimeout, cancel)
		_, err := stream.Recv()
		overdue.Stop()
		if err != nil {
			return sent, err
		}
		sent = true
		if !pause(ctx, reportEvery) {
			return sent, ctx.Err()
		}
	}
}

func (r *Reporter) report() *telemetryv1.NodeReport {
	out := &telemetryv1.NodeReport{Node: r.Node, Time: timestamppb.Now()}
	room := maxReported
	for _, p := range r.Pods() {
		w := &telemetryv1.WorkloadReport{Workload: &telemetryv1.Workload{
			Node: r.Node, Namespace: p.Facts.Namespace, Pod: p.Facts.Pod, PodUid: p.Facts.UID, ServiceAccount: p.Facts.ServiceAccount, Identity: p.ID.String(),
		}}
		if current, err := p.GetX509SVID(); err == nil {
			leaf := current.Certificates[0]
			w.CertificateSerial, w.CertificateExpiry = leaf.SerialNumber.Text(16), timestamppb.New(leaf.NotAfter)
		}
		w.Counters = r.Sink.counters(p.Facts.UID, room)
		room -= len(w.Counters)
		out.Workloads = append(out.Workloads, w)
	}
	return out
}

// counters returns up to n counters of a proxy.
func (s *Sink) counters(uid string, n int) []*telemetryv1.Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proxies[uid]
	if p == nil {
		return nil
	}
	var out []*telemetryv1.Counter
	for name, f := range p.families {
		if f.GetType() != dto.MetricType_COUNTER {
			continue
		}
		for _, m := range f.GetMetric() {
			if len(out) >= n {
				return out
			}
			labels := make(map[string]string, len(m.GetLabel()))
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = strings.ToValidUTF8(l.GetValue(), "\uFFFD")
			}
			out = append(out, &telemetryv1.Counter{Name: name, Labels: labels, Value: m.GetCounter().GetValue()})
		}
	}
	return out
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
