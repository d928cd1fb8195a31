package translate_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

// TestKubeletHearsTheApplicationsAnswer asks an Envoy with a proxy's own bootstrap what kubelet asks it.
func TestKubeletHearsTheApplicationsAnswer(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/ready?x=1" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer app.Close()
	port := uint32(app.Listener.Addr().(*net.TCPAddr).Port)
	ports := envoytest.FreePorts(t, 3)
	closed := ports[2]
	probes := []translate.Probe{
		{Container: "app", Name: "readyz", HTTP: &translate.HTTPProbe{Port: port, Path: "/ready?x=1"}},
		{Container: "app", Name: "livez", TCP: &port},
		{Container: "down", Name: "livez", TCP: &closed},
		{Container: "down", Name: "readyz", HTTP: &translate.HTTPProbe{Port: closed, Path: "/"}},
	}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[0]}
	translate.AnswerKubelet(b, probes, "127.0.0.1")
	b.StaticResources.Listeners[0].Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	admin := translate.Admin()
	admin.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[0]}
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, admin)
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	for path, want := range map[string]bool{
		"/healthz/ready": true, "/app-health/app/readyz": true, "/app-health/app/livez": true,
		"/app-health/down/livez": false, "/app-health/down/readyz": false, "/app-health/none/livez": false, "/config_dump": false,
	} {
		deadline := time.Now().Add(10 * time.Second)
		for {
			resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", ports[1], path))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if (resp.StatusCode == http.StatusOK) == want {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %d", path, resp.StatusCode)
				break
			}
			time.Sleep(100 * time.Millisecond) // active checks need a round
		}
	}
}
