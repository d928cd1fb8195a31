package translate_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Servers close connections that have been idle for a while, and a request of the proxy's that meets that moment is lost.
func TestProxyLeavesTheApplicationFirst(t *testing.T) {
	envoytest.Find(t)
	closed := make(chan time.Duration, 16)
	var since time.Time
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateIdle:
			since = time.Now()
		case http.StateClosed:
			closed <- time.Since(since)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	ports, ca := envoytest.FreePorts(t, 1), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], uint32(srv.Listener.Addr().(*net.TCPAddr).Port), protocol.HTTP, "web")
	s.start(func(*grpc.Server) {})
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	if status := post(t, client, "http://"+net.JoinHostPort("127.0.0.1", port(ports[0])), nil); status != 200 {
		t.Fatalf("the application answers %d", status)
	}
	select {
	case idle := <-closed:
		if idle > 3*time.Second {
			t.Errorf("the proxy left after %v, and servers close connections after two seconds", idle)
		}
	case <-time.After(20 * time.Second):
		t.Error("the proxy holds the application's connection for more than 20 seconds without a request")
	}
}

// Nothing of the proxies' ends what is silent, unless the workload asks for it.
func TestNobodyHasToSpeak(t *testing.T) {
	web := compile.ServicePort{Service: &registry.Service{Name: "web", Namespace: "shop"}, Host: "web.shop.svc.cluster.local", Number: 80, Protocol: protocol.Auto, Mutual: true}
	var all []*listener.Listener
	for _, w := range []compile.Workload{{Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.Auto}}, {Other: compile.InboundPort{Mode: authz.Permissive, Protocol: protocol.Auto}}} {
		all = append(all, translate.InboundListener(settings, &w))
	}
	service := translate.ServiceListener(&compile.Frontend{Address: compile.Address{IP: "10.0.0.1", Port: 80}, Service: web})
	inlineShared(service)
	all = append(all, service, translate.OutboundListener(nil, false), translate.RefusalListenerAtSocket())
	if n := idleTimeouts(t, all, 0); n < 12 {
		t.Errorf("looked at %d filters", n)
	}
	hour := compile.Workload{Class: compile.Class{IdleTimeout: time.Hour}, Other: compile.InboundPort{Mode: authz.Permissive, Protocol: protocol.Auto}}
	idleTimeouts(t, []*listener.Listener{translate.InboundListener(settings, &hour)}, time.Hour)
}

// idleTimeouts demands that each filter that has idle timeouts has this one, and returns how many such filters there are.
func idleTimeouts(t *testing.T, listeners []*listener.Listener, want time.Duration) (n int) {
	t.Helper()
	for _, l := range listeners {
		for _, c := range l.GetFilterChains() {
			var got []*durationpb.Duration
			repack(t, last(c).GetTypedConfig(), func(m any) {
				switch f := m.(type) {
				case *tcpproxy.TcpProxy:
					got = []*durationpb.Duration{f.GetIdleTimeout()}
				case *hcm.HttpConnectionManager:
					got = []*durationpb.Duration{f.GetStreamIdleTimeout(), f.GetCommonHttpProtocolOptions().GetIdleTimeout()}
				default:
					t.Errorf("%s, %s: unknown filter %T", l.GetName(), c.GetName(), m)
				}
			})
			for _, d := range got {
				n++
				if d == nil || d.AsDuration() != want {
					t.Errorf("%s, %s: idle timeout %v, want %v", l.GetName(), c.GetName(), d, want)
				}
			}
		}
	}
	return n
}

// A workload that asks for it has an end set to what is silent.
func TestIdleTimeoutEndsWhatIsSilent(t *testing.T) {
	envoytest.Find(t)
	app := startApplication(t, false)
	ports, ca := envoytest.FreePorts(t, 1), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, idle: time.Second, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], app.port, protocol.TCP, "web")
	s.start(func(*grpc.Server) {})
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(ports[0])))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("heard %q, then %v; want the end of the connection", got, err)
	}
}
