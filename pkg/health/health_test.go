package health

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func TestOneBadMetricDoesNotHideTheOthers(t *testing.T) {
	good := prometheus.NewRegistry()
	good.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "good_metric"}, func() float64 { return 7 }))
	bad := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("collected twice") })
	w := httptest.NewRecorder()
	New(prometheus.Gatherers{good, bad}).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "good_metric 7") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

// HTTP/2 without TLS, whose frames cost more than they look like (CVE-2022-41721), is not spoken: neither at once nor after
// an upgrade.
func TestHTTP2IsNotSpoken(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(prometheus.NewRegistry()).Serve(ctx, addr) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for sent, want := range map[string]string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00":                                                                               "HTTP/1.1 4",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n": "HTTP/1.1 200",
	} {
		conn := dial(t, addr)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("%.20q is answered with %.40q, %v; want %q", sent, got, err, want)
		}
		conn.Close()
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
