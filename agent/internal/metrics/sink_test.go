package metrics

import (
	"testing"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
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
