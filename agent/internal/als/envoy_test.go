package als

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// proxy is an Envoy that logs every request as Pilot has it done: see pilot/internal/telemetry, accesslog.go, and agentCluster of pilot/internal/translate.
const proxy = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          access_log:
          - name: envoy.access_loggers.open_telemetry
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig
              log_name: audit
              disable_builtin_labels: true
              buffer_flush_interval: 0.2s
              buffer_size_bytes: 16384
              grpc_service:
                envoy_grpc: {cluster_name: bulwark-agent}
                retry_policy:
                  retry_on: connect-failure,refused-stream,reset,cancelled,unavailable
                  num_retries: 120
                  retry_back_off: {base_interval: 0.1s, max_interval: 2s}
              attributes:
                values:
                - {key: bulwark.kind, value: {string_value: http}}
                - {key: method, value: {string_value: "%%REQ(:METHOD):256%%"}}
                - {key: path, value: {string_value: "%%REQ(:PATH):4096%%"}}
                - {key: authority, value: {string_value: "%%REQ(X-ODD):4096%%"}}
                - {key: response_code, value: {string_value: "%%RESPONSE_CODE%%"}}
  clusters:
  - name: bulwark-agent
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {thresholds: [{max_retries: 2048, max_requests: 8192, max_pending_requests: 8192}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: bulwark-agent
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %s}}}}]}]
`

// paths keeps what came, by path.
type paths struct {
	mu   sync.Mutex
	seen map[string]int
}

func (p *paths) Append(e *telemetryv1.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[e.GetPath()]++
	return true
}

func (p *paths) missing(of []string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, path := range of {
		if p.seen[path] == 0 {
			n++
		}
	}
	return n
}

// receive serves a pod's socket as an agent does, until the returned function ends it without a word to the proxy.
func receive(t *testing.T, socket string, sink Sink) (kill func()) {
	t.Helper()
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(mtls.BoundedOptions(mtls.Limits{MaxRecvMsgSize: 16 << 20})...)
	Attach(sink, Hears{}, "node", prometheus.NewRegistry())(&identity.Identity{}, s)
	go func() { _ = s.Serve(l) }() // ends with Stop
	return s.Stop
}

func TestNothingIsLostWhileTheAgentIsAway(t *testing.T) {
	binary := os.Getenv("BULWARK_ENVOY")
	if binary == "" {
		var err error
		if binary, err = exec.LookPath("envoy"); err != nil {
			t.Skip("no Envoy: BULWARK_ENVOY is not set and there is none on the PATH")
		}
	}
	dir, err := os.MkdirTemp("", "als") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	got := &paths{seen: map[string]int{}}
	kill := receive(t, socket, got)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, proxy, port, socket), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-c", file, "--concurrency", "2", "--disable-hot-restart", "--log-level", "error")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	var sent []string
	ask := func(n int) bool {
		path := fmt.Sprintf("/%d", n)
		req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Odd", "no UTF-8: \xff\xfe") // must not cost the batch it is in
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		sent = append(sent, path)
		return true
	}
	for deadline := time.Now().Add(20 * time.Second); !ask(0); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Envoy does not serve")
		}
	}
	load := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(3 * time.Millisecond) {
			if !ask(len(sent)) {
				t.Fatal("a request failed")
			}
		}
	}
	load(time.Second)
	kill()
	before := len(sent)
	load(3 * time.Second)
	away := len(sent) - before
	t.Cleanup(receive(t, socket, got))
	load(time.Second)
	for deadline := time.Now().Add(20 * time.Second); got.missing(sent) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d entries lost; %d were of the time without an agent", got.missing(sent), len(sent), away)
		}
	}
	if away < 100 {
		t.Fatalf("only %d requests while the agent was away", away)
	}
	t.Logf("%d entries came, %d of them of the time without an agent", len(sent), away)
}
