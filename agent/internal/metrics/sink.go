// Package metrics takes the counters that the node's proxies push, shows them under the names that Istio's tools expect,
// and reports them to Mixer.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	metricsservice "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// maxSeries bounds what one proxy can make the agent hold.
const maxSeries = 5000

// Sink holds the latest values of every proxy of the node. It implements prometheus.Gatherer.
type Sink struct {
	mu      sync.Mutex
	proxies map[string]*proxy // by pod UID
}

type proxy struct {
	pod       *identity.Identity
	owner     *owner // nil until the proxy has said
	families  map[string]*dto.MetricFamily
	durations map[string]*dto.Histogram // by series, since the pod is there or the agent
	unfolded  map[string]unfolded       // of the last push, by how they were pushed: most series come again and again
	dropped   int                       // series of the last push that were too many
	trials    trials
}

// New returns an empty sink.
func New() *Sink { return &Sink{proxies: map[string]*proxy{}} }

// Attach adds the metrics service to a pod's socket; what the pod counted is forgotten with it.
func (s *Sink) Attach(p *identity.Identity, r grpc.ServiceRegistrar) func(context.Context) {
	s.mu.Lock()
	s.proxies[p.Facts.UID] = &proxy{pod: p, families: map[string]*dto.MetricFamily{}}
	s.mu.Unlock()
	metricsservice.RegisterMetricsServiceServer(r, &service{sink: s, uid: p.Facts.UID})
	return func(ctx context.Context) {
		<-ctx.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.proxies, p.Facts.UID)
	}
}

type service struct {
	metricsservice.UnimplementedMetricsServiceServer
	sink *Sink
	uid  string
}

// StreamMetrics implements MetricsService.
func (s *service) StreamMetrics(rpc metricsservice.MetricsService_StreamMetricsServer) error {
	for {
		msg, err := rpc.Recv()
		if errors.Is(err, io.EOF) {
			return rpc.SendAndClose(&metricsservice.StreamMetricsResponse{})
		}
		if err != nil {
			return err
		}
		s.sink.take(s.uid, msg.GetEnvoyMetrics())
	}
}

// take replaces what a proxy pushed before: a push has everything, with a family of its own for each series. Only Istio's
// standard metrics are kept: the proxy's own are scraped from the proxy.
func (s *Sink) take(uid string, pushed []*dto.MetricFamily) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proxies[uid]
	if p == nil {
		return
	}
	for _, f := range pushed {
		if f.GetName() == mesh.FoldedMetrics+"."+mesh.FoldedProxy && len(f.GetMetric()) > 0 {
			p.belongsTo(ownerOf(p.pod, f.GetMetric()[0].GetLabel()))
		}
	}
	p.families, p.dropped = map[string]*dto.MetricFamily{}, 0
	before, seen, known, count := p.durations, p.unfolded, map[string]*dto.Metric{}, 0
	p.durations, p.unfolded = map[string]*dto.Histogram{}, map[string]unfolded{}
	for _, f := range pushed {
		name, folded := standard(f.GetName())
		if name == "" || f.GetType() == dto.MetricType_SUMMARY || folded && p.owner == nil {
			continue // what is not Istio's, a histogram a second time, or of a proxy that has not yet said whose it is
		}
		family := p.families[name]
		if family == nil {
			family = &dto.MetricFamily{Name: proto.String(name), Help: proto.String("Counted by the mesh's proxies."), Type: f.Type}
			p.families[name] = family
		}
		for _, m := range f.GetMetric() {
			m.TimestampMs = nil // the scrape's time is the sample's
			pushedAs := seriesKey(name, m.GetLabel())
			shown := unfolded{pushedAs, m.GetLabel()}
			if folded {
				var ok bool
				if shown, ok = seen[pushedAs]; !ok {
					shown = unfoldedBy(p.owner, name, m)
				}
				if shown.labels == nil {
					continue
				}
			}
			key := shown.key
			twin := known[key]
			if twin == nil && count == maxSeries {
				p.dropped++
				continue
			}
			m.Label = shown.labels
			if folded && twin == nil { // so that as many are remembered as are shown
				p.unfolded[pushedAs] = shown
			}
			if m.Histogram != nil {
				p.durations[key] = sum(cmp.Or(p.durations[key], before[key]), m.Histogram)
			}
			if twin == nil {
				known[key] = m
				family.Metric = append(family.Metric, m)
				count++
			} else if m.GetCounter().GetValue() > twin.GetCounter().GetValue() { // A scrape must not have a series twice.
				twin.Counter = m.Counter
			}
			known[key].Histogram = p.durations[key]
		}
	}
}

// unfolded is a series as it is shown.
type unfolded struct {
	key    string
	labels []*dto.LabelPair
}

func unfoldedBy(o *owner, name string, m *dto.Metric) unfolded {
	labels := o.unfold(m.GetLabel())
	return unfolded{seriesKey(name, labels), labels}
}

// belongsTo takes note of whose proxy it is.
func (p *proxy) belongsTo(o *owner) {
	if p.owner == nil || *p.owner != *o {
		p.owner, p.unfolded = o, nil
	}
}

// standard returns the name of one of Istio's metrics, by Envoy's, and whether its labels are folded. While Pilot changes to folded ones, a
// proxy pushes both.
func standard(name string) (istio string, folded bool) {
	prefix, rest, _ := strings.Cut(name, ".")
	if prefix != "istio" && prefix != mesh.FoldedMetrics || name == mesh.FoldedMetrics+"."+mesh.FoldedProxy {
		return "", false
	}
	return "istio_" + strings.ReplaceAll(rest, ".", "_"), prefix == mesh.FoldedMetrics
}

// sum adds what came since the last push: of a histogram, unlike of a counter, that is all that Envoy pushes.
func sum(before, since *dto.Histogram) *dto.Histogram {
	if before == nil || len(before.GetBucket()) != len(since.GetBucket()) {
		return since
	}
	out := &dto.Histogram{SampleCount: proto.Uint64(before.GetSampleCount() + since.GetSampleCount()), SampleSum: proto.Float64(before.GetSampleSum() + since.GetSampleSum())}
	for i, b := range before.GetBucket() {
		out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: b.UpperBound, CumulativeCount: proto.Uint64(b.GetCumulativeCount() + since.GetBucket()[i].GetCumulativeCount())})
	}
	return out
}

func seriesKey(name string, labels []*dto.LabelPair) string {
	pairs := make([]string, 0, len(labels))
	for _, l := range labels {
		pairs = append(pairs, l.GetName()+"\xff"+l.GetValue())
	}
	slices.Sort(pairs)
	return name + "\xff" + strings.Join(pairs, "\xff")
}

// Gather implements prometheus.Gatherer: every proxy's series, told apart by the labels namespace and pod.
func (s *Sink) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]*dto.MetricFamily{}
	for _, p := range s.proxies {
		for name, f := range p.families {
			out := all[name]
			if out == nil {
				out = &dto.MetricFamily{Name: f.Name, Help: f.Help, Type: f.Type}
				all[name] = out
			}
			if out.GetType() != f.GetType() {
				continue // two versions of the proxy disagree; the first one counts
			}
			for _, m := range f.GetMetric() {
				out.Metric = append(out.Metric, withPod(m, p.pod.Facts))
			}
		}
	}
	if t := s.tried(); len(t.GetMetric()) > 0 {
		all[t.GetName()] = t
	}
	out := make([]*dto.MetricFamily, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out, nil
}

// withPod returns the metric with the labels that tell its proxy, sorted by name. Nothing the proxy sent stands in
// their place.
func withPod(m *dto.Metric, f identity.Facts) *dto.Metric {
	labels := make([]*dto.LabelPair, 0, len(m.GetLabel())+2)
	for _, l := range m.GetLabel() {
		if l.GetName() != "pod" && l.GetName() != "namespace" {
			labels = append(labels, &dto.LabelPair{Name: l.Name, Value: proto.String(strings.ToValidUTF8(l.GetValue(), "\uFFFD"))})
		}
	}
	labels = append(labels, &dto.LabelPair{Name: proto.String("namespace"), Value: proto.String(f.Namespace)}, &dto.LabelPair{Name: proto.String("pod"), Value: proto.String(f.Pod)})
	slices.SortFunc(labels, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	return &dto.Metric{Label: labels, Counter: m.Counter, Gauge: m.Gauge, Histogram: m.Histogram, Summary: m.Summary, Untyped: m.Untyped}
}
