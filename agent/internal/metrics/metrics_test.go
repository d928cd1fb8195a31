package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metricsservice "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/health"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPod(t *testing.T, name string) *identity.Identity {
	t.Helper()
	id, err := (&identity.Issuer{TrustDomain: "cluster.local", Clock: clock.RealClock{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}).
		New(identity.Facts{Namespace: "finance", Pod: name, UID: "uid-" + name, ServiceAccount: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func counter(name string, value float64, labels ...string) *dto.MetricFamily {
	m := &dto.Metric{Counter: &dto.Counter{Value: proto.Float64(value)}, TimestampMs: proto.Int64(1)}
	for i := 0; i < len(labels); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(labels[i]), Value: proto.String(labels[i+1])})
	}
	return &dto.MetricFamily{Name: proto.String(name), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{m}}
}

func scrape(t *testing.T, s *Sink) string {
	t.Helper()
	w := httptest.NewRecorder()
	health.New(prometheus.Gatherers{prometheus.NewRegistry(), s}).Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestProxiesCountersAreShownUnderIstiosNames(t *testing.T) {
	s := New()
	stops := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		ctx, cancel := context.WithCancel(context.Background())
		stops[name] = cancel
		run := s.Attach(newPod(t, name), grpc.NewServer())
		wg.Go(func() { run(ctx) })
	}
	push := func(pod string, value float64) {
		s.take("uid-"+pod, []*dto.MetricFamily{
			counter("istio.requests_total", value, "reporter", "destination", "response_code", "200", "pod", "forged"),
			counter("cluster.upstream_cx_total", 5),
		})
	}
	push("a", 3)
	push("a", 4) // the latest counts
	push("b", 7)
	push("unknown", 9)
	got := scrape(t, s)
	for _, want := range []string{
		`istio_requests_total{namespace="finance",pod="a",reporter="destination",response_code="200"} 4`,
		`istio_requests_total{namespace="finance",pod="b",reporter="destination",response_code="200"} 7`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("missing %s in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "upstream_cx") || strings.Contains(got, "forged") || strings.Count(got, "istio_requests_total{") != 2 {
		t.Errorf("too much in:\n%s", got)
	}
	stops["a"]()
	for end := time.Now().Add(10 * time.Second); strings.Contains(scrape(t, s), `pod="a"`); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a pod that is gone is still shown")
		}
	}
	stops["b"]()
	wg.Wait()
}

func TestOneProxyCannotFillTheMemory(t *testing.T) {
	s := New()
	s.Attach(newPod(t, "a"), grpc.NewServer())
	f := counter("istio.requests_total", 1, "path", "0")
	for i := range 20000 {
		f.Metric = append(f.Metric, &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("path"), Value: proto.String(fmt.Sprint(i + 1))}}, Counter: &dto.Counter{Value: proto.Float64(1)}})
	}
	for range 3 {
		s.take("uid-a", []*dto.MetricFamily{f, counter("istio.tcp_sent_bytes_total", 1)})
	}
	held := 0
	for _, f := range s.proxies["uid-a"].families {
		held += len(f.GetMetric())
	}
	if dropped := s.proxies["uid-a"].dropped; held != maxSeries || dropped != 15002 {
		t.Fatalf("%d series held, %d dropped", held, dropped)
	}
}

type intake struct {
	telemetryv1.UnimplementedIntakeServer
	reports chan *telemetryv1.NodeReport
}

func (i *intake) Counters(stream grpc.BidiStreamingServer[telemetryv1.NodeReport, telemetryv1.NodeReportTaken]) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case i.reports <- r:
		default:
		}
		if err := stream.Send(&telemetryv1.NodeReportTaken{}); err != nil {
			return err
		}
	}
}

func TestReportsReachMixerThroughTheRealService(t *testing.T) {
	s := New()
	pod := newPod(t, "a")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	m := &intake{reports: make(chan *telemetryv1.NodeReport, 10)}
	telemetryv1.RegisterIntakeServer(server, m)
	forget := s.Attach(pod, server)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { forget(ctx) })
	wg.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); server.Stop(); wg.Wait(); conn.Close() }()

	push, err := metricsservice.NewMetricsServiceClient(conn).StreamMetrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := push.Send(&metricsservice.StreamMetricsMessage{EnvoyMetrics: []*dto.MetricFamily{counter("istio.requests_total", 42, "reporter", "source")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := push.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	r := &Reporter{Sink: s, Pods: func() []*identity.Identity { return []*identity.Identity{pod} }, Node: "node1", Conn: conn, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	wg.Go(func() { r.Run(ctx) })
	select {
	case got := <-m.reports:
		w := got.GetWorkloads()[0]
		if got.GetNode() != "node1" || w.GetWorkload().GetIdentity() != "spiffe://cluster.local/ns/finance/sa/payroll" ||
			len(w.GetCounters()) != 1 || w.GetCounters()[0].GetName() != "istio_requests_total" || w.GetCounters()[0].GetValue() != 42 || w.GetCounters()[0].GetLabels()["reporter"] != "source" {
			t.Fatalf("%v", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no report")
	}
}
