package translate_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metricsservice "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// pushes is where the agent's tests have what a proxy pushes. They say what Prometheus sees of it.
const pushes = "../../../agent/internal/metrics/testdata/pushed.jsonl"

// receiver is the agent's metrics service. It keeps the last push, and adds up what pushes say of histograms: of these, each says what came
// since the one before.
type receiver struct {
	metricsservice.UnimplementedMetricsServiceServer
	mu        sync.Mutex
	last      []*dto.MetricFamily
	durations map[string]uint64
}

// of names a series.
func of(f *dto.MetricFamily, m *dto.Metric) string {
	return fmt.Sprint(f.GetName(), f.GetType(), m.GetLabel())
}

func (r *receiver) StreamMetrics(rpc metricsservice.MetricsService_StreamMetricsServer) error {
	for {
		msg, err := rpc.Recv()
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.last = msg.GetEnvoyMetrics()
		for _, f := range r.last {
			for _, m := range f.GetMetric() {
				r.durations[of(f, m)] += m.GetHistogram().GetSampleCount() + m.GetSummary().GetSampleCount()
			}
		}
		r.mu.Unlock()
	}
}

// text is what was pushed of the mesh's metrics, a line a family, in order. How long requests took is left out.
func (r *receiver) text(t *testing.T) string {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, f := range r.last {
		if !strings.HasPrefix(f.GetName(), "istio") {
			continue
		}
		f = proto.Clone(f).(*dto.MetricFamily)
		for _, m := range f.GetMetric() {
			m.TimestampMs = nil
			count := proto.Uint64(r.durations[of(f, m)])
			if h := m.GetHistogram(); h != nil {
				h.SampleCount, h.SampleSum, h.Bucket = count, proto.Float64(0), []*dto.Bucket{{UpperBound: proto.Float64(1), CumulativeCount: count}}
			}
			if s := m.GetSummary(); s != nil {
				s.SampleCount, s.SampleSum, s.Quantile = count, proto.Float64(0), nil
			}
		}
		line, err := protojson.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, compact.String()+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// TestWhatProxiesPushIsWhatTheAgentIsTestedWith asks for something of each kind, and compares what Envoy pushes about it with what the
// agent's tests take for granted.
func TestWhatProxiesPushIsWhatTheAgentIsTestedWith(t *testing.T) {
	envoytest.Find(t)
	ports, ca := envoytest.FreePorts(t, 12), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient), loggers: "envoy.access_loggers.stats"}
	peer, err := spiffe.Parse(scenePeer)
	if err != nil {
		t.Fatal(err)
	}
	clients := map[spiffe.ID]envoytest.Leaf{peer: ca.Issue(t, scenePeer)}
	web, echo := webApplication(t), startApplication(t, true)
	denied := policyOf(t, "closed", `{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/secret"]}}]}]}`)
	at := func(port uint32, mutual bool) compile.Endpoint {
		return compile.Endpoint{Address: "127.0.0.1", Port: port, Plain: !mutual,
			Workload: compile.Labels{Workload: "ledger-v1", Namespace: "finance", CanonicalName: "ledger-v1", CanonicalRevision: "v1"}}
	}
	serverHTTP, serverTCP, unnamed := ports[0], ports[1], ports[2]
	s.inbound(serverHTTP, web, protocol.HTTP, "checkout", denied)
	s.inbound(serverTCP, echo.port, protocol.TCP, "store")
	s.inbound(unnamed, web, protocol.HTTP, "")
	clientHTTP, clientGRPC, clientTCP, empty, impostor, plain, foreign := ports[3], ports[4], ports[5], ports[6], ports[7], ports[8], ports[9]
	s.outbound(clientHTTP, protocol.HTTP, "ledger", nil, at(serverHTTP, true))
	s.outbound(clientGRPC, protocol.HTTP2, "rpc", nil, at(serverHTTP, true))
	s.outbound(clientTCP, protocol.TCP, "db", nil, at(serverTCP, true))
	s.outbound(empty, protocol.HTTP, "empty", nil)
	s.outbound(impostor, protocol.HTTP, "impostor", nil, at(web, true)) // whose server speaks no TLS
	s.outbound(plain, protocol.HTTP, "plain", nil, at(web, false))
	s.outbound(foreign, protocol.TCP, "foreign", nil, compile.Endpoint{Address: "127.0.0.1", Port: echo.port, Plain: true})
	refusal := translate.RefusalListenerAtSocket()
	refusal.ListenerFilters = refusal.ListenerFilters[1:] // no PROXY protocol
	s.listen(refusal, ports[10])
	started := translate.Bootstrap()
	translate.AnswerKubelet(started, nil, "127.0.0.1", false)
	s.listen(started.StaticResources.Listeners[0], ports[11])
	r := &receiver{durations: map[string]uint64{}}
	s.start(func(srv *grpc.Server) { metricsservice.RegisterMetricsServiceServer(srv, r) })

	requests, closed := 0, 0
	get := func(client *http.Client, port uint32, path string, header http.Header) {
		t.Helper()
		post(t, client, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), header)
		requests++
	}
	plainClient := &http.Client{Timeout: 20 * time.Second}
	get(plainClient, clientHTTP, "/200", nil)
	get(plainClient, clientHTTP, "/200", nil)
	get(plainClient, clientHTTP, "/404", nil)
	get(plainClient, clientHTTP, "/secret", nil)
	requests += 4 // each is counted on both sides
	get(plainClient, serverHTTP, "/200", nil)
	get(plainClient, unnamed, "/503", nil)
	get(plainClient, empty, "/", nil)
	get(plainClient, impostor, "/", nil)
	get(plainClient, plain, "/500", nil)
	get(plainClient, ports[10], "/", nil)
	probe, err := plainClient.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", ports[11]))
	if err != nil {
		t.Fatal(err)
	}
	probe.Body.Close()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h2 := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Protocols: protocols}}
	for _, path := range []string{"/0", "/5"} {
		get(h2, clientGRPC, path, http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}})
		requests++
	}
	tcp := func(port uint32, id spiffe.ID, sides int) {
		t.Helper()
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if !id.IsZero() {
			conn = tls.Client(conn, &tls.Config{Certificates: []tls.Certificate{clients[id].TLS}, InsecureSkipVerify: true, //nolint:gosec // the server's name is not what is tested
				NextProtos: []string{"istio-opaque"}, MinVersion: tls.VersionTLS13})
		}
		// What is known of a connection when it is opened must not depend on how fast the client speaks.
		for _, say := range []string{"", "knock"} {
			if _, err := io.WriteString(conn, say); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
				t.Fatalf("no answer to %q: %v", say, err)
			}
		}
		closed += sides
	}
	tcp(clientTCP, spiffe.ID{}, 2)
	tcp(foreign, spiffe.ID{}, 1)
	tcp(serverTCP, spiffe.ID{}, 1)
	tcp(serverTCP, peer, 1)

	want, err := os.ReadFile(pushes)
	if err != nil && !*update {
		t.Fatal(err)
	}
	var text string
	end := time.Now().Add(60 * time.Second)
	for ; time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		text = r.text(t)
		if counted(t, r, "request_duration_milliseconds") == requests && counted(t, r, "tcp_connections_closed_total") == closed && (*update || text == string(want)) {
			break
		}
	}
	if *update {
		if err := os.WriteFile(pushes, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !time.Now().Before(end) {
		t.Fatalf("pushed (counts %d of %d requests, %d of %d connections):\n%s\nwant, in %s:\n%s", counted(t, r, "request_duration_milliseconds"), requests,
			counted(t, r, "tcp_connections_closed_total"), closed, text, pushes, want)
	}
}

// counted adds up the series of a metric.
func counted(t *testing.T, r *receiver, name string) (sum int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.last {
		if _, rest, ok := strings.Cut(f.GetName(), "."); ok && rest == name {
			for _, m := range f.GetMetric() {
				sum += int(m.GetCounter().GetValue())
				if m.GetHistogram() != nil {
					sum += int(r.durations[of(f, m)])
				}
			}
		}
	}
	return sum
}
