package metrics

import (
	"fmt"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func pushed(name, code string, value float64) *dto.MetricFamily {
	return &dto.MetricFamily{Name: proto.String(name), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{{
		Label: []*dto.LabelPair{{Name: proto.String("response_code"), Value: proto.String(code)}}, Counter: &dto.Counter{Value: proto.Float64(value)},
	}}}
}

// Envoy pushes each series as a family of its own.
func TestSeriesOfOneNameAreAllKept(t *testing.T) {
	s := New()
	s.proxies["u"] = &proxy{pod: &identity.Identity{}, families: map[string]*dto.MetricFamily{}}
	s.take("u", []*dto.MetricFamily{pushed("istio.requests_total", "200", 1), pushed("istio.requests_total", "403", 1), pushed("server.uptime", "", 1)})
	s.take("u", []*dto.MetricFamily{pushed("istio.requests_total", "200", 12), pushed("istio.requests_total", "403", 3)})
	got := map[string]float64{}
	for _, c := range s.counters("u", 100) {
		if c.GetName() != "istio_requests_total" {
			t.Errorf("counter %s is not Istio's", c.GetName())
		}
		got[c.GetLabels()["response_code"]] = c.GetValue()
	}
	if len(got) != 2 || got["200"] != 12 || got["403"] != 3 {
		t.Fatalf("got %v", got)
	}
}

// A push may have a series twice, and Prometheus refuses a scrape that does.
func TestSeriesThatIsPushedTwiceIsScrapedOnce(t *testing.T) {
	s := New()
	s.proxies["u"] = &proxy{pod: &identity.Identity{}, families: map[string]*dto.MetricFamily{}}
	s.take("u", []*dto.MetricFamily{pushed("istio.requests_total", "200", 12), pushed("istio.requests_total", "200", 0), pushed("istio.requests_total", "403", 0), pushed("istio.requests_total", "403", 5)})
	families, err := s.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 2 {
		t.Fatalf("%v %v", families, err)
	}
	if a, b := families[0].GetMetric()[0].GetCounter().GetValue(), families[0].GetMetric()[1].GetCounter().GetValue(); a != 12 || b != 5 {
		t.Errorf("%v and %v, want 12 and 5", a, b)
	}
}

// proxyOf returns a sink with one pod's proxy, shop/checkout-1.
func proxyOf(t *testing.T) *Sink {
	t.Helper()
	id, err := spiffe.New("cluster.local", "shop", "checkout")
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	s.proxies["u"] = &proxy{pod: &identity.Identity{ID: id, Facts: identity.Facts{Namespace: "shop", Pod: "checkout-1", UID: "u", ServiceAccount: "checkout"}}}
	return s
}

func lasted(counts ...uint64) *dto.MetricFamily {
	h := &dto.Histogram{SampleSum: proto.Float64(float64(counts[len(counts)-1])), SampleCount: proto.Uint64(counts[len(counts)-1])}
	for i, n := range counts {
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: proto.Float64(float64(i)), CumulativeCount: proto.Uint64(n)})
	}
	return &dto.MetricFamily{Name: proto.String("istio.request_duration_milliseconds"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{Histogram: h}}}
}

// Envoy pushes of a histogram what came since it pushed last, and in two forms. Prometheus wants one, of all that ever came.
func TestHistogramsAreAddedUp(t *testing.T) {
	s := proxyOf(t)
	for _, push := range []*dto.MetricFamily{lasted(1, 3), lasted(0, 0), lasted(2, 4)} {
		s.take("u", []*dto.MetricFamily{{Name: push.Name, Type: dto.MetricType_SUMMARY.Enum(), Metric: []*dto.Metric{{Summary: &dto.Summary{}}}}, push})
	}
	families, err := s.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 1 || families[0].GetType() != dto.MetricType_HISTOGRAM {
		t.Fatalf("%v %v", families, err)
	}
	h := families[0].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 7 || h.GetSampleSum() != 7 || h.GetBucket()[0].GetCumulativeCount() != 3 || h.GetBucket()[1].GetCumulativeCount() != 7 {
		t.Errorf("%v", h)
	}
	s.take("u", nil)
	s.take("u", []*dto.MetricFamily{lasted(1, 1)})
	if families, _ = s.Gather(); families[0].GetMetric()[0].GetHistogram().GetSampleCount() != 1 {
		t.Errorf("a series that was gone and came back: %v", families)
	}
}

func folded(name string, value float64, labels ...string) *dto.MetricFamily {
	return counter(mesh.FoldedMetrics+"."+name, value, labels...)
}

// line is the label of a series: who counts and the service called, "by|called", and what became of it.
func line(where, outcome string) string { return where + "|||" + outcome }

// A proxy that has not yet said whose it is has no series under another's name or none. Afterwards it has those that it counted before, too.
func TestFoldedSeriesWaitForTheProxysName(t *testing.T) {
	s := proxyOf(t)
	requests := func() *dto.MetricFamily {
		return folded("requests_total", 3, mesh.FoldedLabel, line("c|ledger.finance.svc.cluster.local", "200 - HTTP/1.1 "))
	}
	s.take("u", []*dto.MetricFamily{requests()})
	if got := s.counters("u", 10); len(got) != 0 {
		t.Fatalf("before: %v", got)
	}
	s.take("u", []*dto.MetricFamily{requests(), folded(mesh.FoldedProxy, 1, mesh.FoldedProxyName, "checkout", mesh.FoldedProxyRevision, "v2", mesh.FoldedProxyCluster, "")})
	for range 2 { // it is remembered
		got := s.counters("u", 10)
		if len(got) != 1 || got[0].GetValue() != 3 || got[0].GetLabels()["source_workload"] != "checkout" || got[0].GetLabels()["source_cluster"] != "unknown" {
			t.Fatalf("after: %v", got)
		}
		s.take("u", []*dto.MetricFamily{requests()})
	}
}

// While Pilot changes from one form to the other, a proxy pushes both, and at last what it counts anew: a counter that was reset.
func TestSeriesOfBothFormsAreOne(t *testing.T) {
	s := proxyOf(t)
	said := folded(mesh.FoldedProxy, 1, mesh.FoldedProxyName, "checkout", mesh.FoldedProxyRevision, "v2", mesh.FoldedProxyCluster, "one")
	fresh := func(value float64) *dto.MetricFamily {
		return folded("requests_total", value, mesh.FoldedLabel, line("p|", "200 - HTTP/2 0"))
	}
	s.take("u", []*dto.MetricFamily{said, fresh(0)})
	var labels []string
	for _, l := range s.proxies["u"].families["istio_requests_total"].GetMetric()[0].GetLabel() {
		labels = append(labels, l.GetName(), l.GetValue())
	}
	old := func() *dto.MetricFamily { return counter("istio.requests_total", 1000, labels...) }
	for i, push := range [][]*dto.MetricFamily{{old()}, {old(), fresh(5)}, {fresh(6), old()}, {fresh(7)}} {
		s.take("u", push)
		got := s.counters("u", 10)
		if want := []float64{1000, 1000, 1000, 7}[i]; len(got) != 1 || got[0].GetValue() != want {
			t.Errorf("push %d: %v, want %v", i, got, want)
		}
	}
}

func TestWhereSeriesAreCounted(t *testing.T) {
	s := proxyOf(t)
	o := ownerOf(s.proxies["u"].pod, []*dto.LabelPair{{Name: proto.String(mesh.FoldedProxyName), Value: proto.String("checkout")}})
	for where, want := range map[string]string{
		"c|PassthroughCluster":               "source PassthroughCluster in unknown: unknown, unknown",
		"c|":                                 "source unknown in unknown: unknown, unknown",
		"c|ledger.finance.svc.cluster.local": "source ledger in finance: ledger.finance.svc.cluster.local, unknown",
		"c|api.example.com":                  "source api.example.com in unknown: api.example.com, unknown",
		"c|*.example.com":                    "source *.example.com in unknown: *.example.com, unknown",
		"m|store":                            "destination store in shop: store.shop.svc.cluster.local, mutual_tls",
		"m|":                                 "destination unknown in shop: unknown, mutual_tls",
		"p|-":                                "destination unknown in shop: unknown, none",
	} {
		l := byName(o.unfold([]*dto.LabelPair{{Name: proto.String(mesh.FoldedLabel), Value: proto.String(line(where, ""))}}))
		got := strings.Join([]string{l["reporter"], l["destination_service_name"], "in", l["destination_service_namespace"] + ":",
			l["destination_service"] + ",", l["connection_security_policy"]}, " ")
		if got != want {
			t.Errorf("%s: %s, want %s", where, got, want)
		}
	}
}

// Of a series that is written in another way than this agent reads, nothing is shown, rather than something wrong.
func TestSeriesInAnotherFormAreLeftAlone(t *testing.T) {
	s := proxyOf(t)
	push := []*dto.MetricFamily{folded(mesh.FoldedProxy, 1, mesh.FoldedProxyName, "checkout", mesh.FoldedProxyRevision, "v2", mesh.FoldedProxyCluster, "one")}
	for _, other := range []string{"", "c|ledger", line("c|ledger.finance.svc.cluster.local", "200 - HTTP/1.1 ") + "|more"} {
		push = append(push, folded("requests_total", 1, mesh.FoldedLabel, other))
	}
	s.take("u", append(push, folded("requests_total", 1, "at", "c/ledger.finance.svc.cluster.local")))
	if got := s.counters("u", 10); len(got) != 0 {
		t.Errorf("shown: %v", got)
	}
}

// What is remembered of one push for the next is bounded like what is shown, and forgotten when the proxy says that it is another's.
func TestWhatIsRememberedOfAPush(t *testing.T) {
	s := proxyOf(t)
	said := func(name string) *dto.MetricFamily {
		return folded(mesh.FoldedProxy, 1, mesh.FoldedProxyName, name, mesh.FoldedProxyRevision, "v2", mesh.FoldedProxyCluster, "one")
	}
	push := func(name string) {
		many := []*dto.MetricFamily{said(name)}
		for i := range maxSeries + 100 { // and each of them a second time, under a label that nobody reads
			for _, odd := range []string{"a", "b"} {
				many = append(many, folded("requests_total", 1, mesh.FoldedLabel, line(fmt.Sprintf("c|s%d.finance.svc.cluster.local", i), ""), "odd", odd))
			}
		}
		s.take("u", many)
	}
	for _, name := range []string{"checkout", "checkout", "till"} {
		push(name)
		got := s.counters("u", 2*maxSeries)
		if len(got) != maxSeries || len(s.proxies["u"].unfolded) != maxSeries {
			t.Fatalf("%d series, %d remembered", len(got), len(s.proxies["u"].unfolded))
		}
		if now := got[0].GetLabels()["source_workload"]; now != name {
			t.Errorf("of %s, want %s", now, name)
		}
	}
}
