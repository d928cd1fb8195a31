package metrics

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var update = flag.Bool("update", false, "write the series that Prometheus sees")

// ofEnvoy is what a real Envoy with Pilot's configuration pushes: a test of pilot/internal/translate writes it, and compares.
func ofEnvoy(t *testing.T) (out []*dto.MetricFamily) {
	t.Helper()
	text, err := os.ReadFile("testdata/pushed.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		f := &dto.MetricFamily{}
		if err := protojson.Unmarshal(line, f); err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

// TestSeriesThatPrometheusSees compares the names, labels and values of all series with those that Istio's tools expect: of requests over
// HTTP/1.1 and gRPC and of connections, counted on both sides, that went well, were denied, or failed in each of several ways.
func TestSeriesThatPrometheusSees(t *testing.T) {
	id, err := spiffe.New("cluster.local", "shop", "checkout")
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	s.Attach(&identity.Identity{ID: id, Facts: identity.Facts{Namespace: "shop", Pod: "checkout-1", UID: "u", ServiceAccount: "checkout"}}, grpc.NewServer())
	s.take("u", ofEnvoy(t))
	families, err := s.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			value := fmt.Sprint(m.GetCounter().GetValue())
			if m.GetHistogram() != nil {
				value = fmt.Sprint("count of ", m.GetHistogram().GetSampleCount())
			}
			lines = append(lines, fmt.Sprintf("%s %s {%s} %s\n", strings.ToLower(f.GetType().String()), f.GetName(), strings.Join(labels, ","), value))
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "")
	const file = "testdata/series.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("series of %s differ; now\n%s", file, got)
	}
}
