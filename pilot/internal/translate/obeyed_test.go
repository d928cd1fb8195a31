package translate_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestProxiesObeyNoHeader sends the headers by which Envoy can be told to try again, to give up or to answer otherwise, from an address that Envoy would take for one of
// its own network, and one by which the proxies themselves note something: an application is asked once, for what the client asks, and its own answer arrives.
func TestProxiesObeyNoHeader(t *testing.T) {
	envoytest.Find(t)
	var asked atomic.Int32
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if got := r.Header.Get("Upgrade"); got != "" && got != "foo/1" {
			t.Errorf("the application is offered %q", got)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(app.Close)
	ports, ca := envoytest.FreePorts(t, 2), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], uint32(app.Listener.Addr().(*net.TCPAddr).Port), protocol.HTTP, "web")
	s.outbound(ports[1], protocol.HTTP, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[0]})
	s.start(func(*grpc.Server) {})
	for name, headers := range map[string]map[string]string{
		"to try again":    {"X-Envoy-Retry-On": "5xx", "X-Envoy-Max-Retries": "7"},
		"by status":       {"X-Envoy-Retry-On": "retriable-status-codes", "X-Envoy-Retriable-Status-Codes": "503", "X-Envoy-Max-Retries": "7"},
		"by gRPC":         {"X-Envoy-Retry-Grpc-On": "unavailable,internal", "X-Envoy-Max-Retries": "7"},
		"to give up":      {"X-Envoy-Upstream-Rq-Timeout-Ms": "1"},
		"to give up each": {"X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms": "1", "X-Envoy-Retry-On": "5xx", "X-Envoy-Max-Retries": "7"},
		"to say 504":      {"X-Envoy-Upstream-Rq-Timeout-Alt-Response": "1", "X-Envoy-Upstream-Rq-Timeout-Ms": "1"},
		"to be known":     {"X-Envoy-Internal": "true", "X-Envoy-Retry-On": "5xx", "X-Envoy-Max-Retries": "7"},
		"to hedge":        {"X-Envoy-Hedge-On-Per-Try-Timeout": "true", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms": "1"},
		"to expect":       {"X-Envoy-Expected-Rq-Timeout-Ms": "1"},
		"to offer HTTP/2": {"Connection": "Upgrade", "Upgrade": "foo/1", "X-Bulwark-Upgrade": "h2c"},
	} {
		for from, forwarded := range map[string]string{"": "", "from a private address": "10.0.0.1", "from itself": "127.0.0.1"} {
			for where, port := range map[string]uint32{"through two proxies": ports[1], "from outside of the mesh": ports[0]} {
				t.Run(name+" "+from+" "+where, func(t *testing.T) {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/", port), http.NoBody)
					if err != nil {
						t.Fatal(err)
					}
					for k, v := range headers {
						req.Header.Set(k, v)
					}
					if forwarded != "" {
						req.Header.Set("X-Forwarded-For", forwarded)
					}
					before := asked.Load()
					resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if n := asked.Load() - before; n != 1 || resp.StatusCode != http.StatusServiceUnavailable {
						t.Errorf("the application was asked %d times, and the answer is %s", n, resp.Status)
					}
				})
			}
		}
	}
}
