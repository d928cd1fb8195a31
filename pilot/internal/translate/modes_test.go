package translate_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// TestPortTakesWhatItsModeSays has a port of each mode beside each mode of the workload, and of each protocol: a port's mode holds,
// and that of the rest of the workload does not show through. An echo comes back where the application was reached as the
// client meant it.
func TestPortTakesWhatItsModeSays(t *testing.T) {
	modes := []authz.TLSMode{authz.Strict, authz.Permissive, authz.Disable}
	protocols := []protocol.Protocol{protocol.TCP, protocol.Auto}
	ports, ca := envoytest.FreePorts(t, len(modes)*len(modes)*len(protocols)+1), envoytest.NewCA(t)
	id := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a"}
	server, client := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll"), ca.Issue(t, id.String())
	app := startApplication(t, false)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	admin := len(ports) - 1
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[admin]}
	type world struct {
		port        uint32
		mode, other authz.TLSMode
		protocol    protocol.Protocol
	}
	var worlds []world
	for _, mode := range modes {
		for _, other := range modes {
			for _, spoken := range protocols {
				w := world{ports[len(worlds)], mode, other, spoken}
				worlds = append(worlds, w)
				l := inboundOn(t, &compile.Workload{Class: compile.Class{Namespace: "finance"}, Other: compile.InboundPort{Mode: other, Protocol: protocol.Auto},
					Ports: []compile.InboundPort{{Number: w.port, Protocol: spoken, Mode: mode}}}, w.port)
				for _, c := range l.GetFilterChains() {
					if c.GetTransportSocket() != nil {
						staticCertificates(t, c, ca, server)
					}
				}
				b.StaticResources.Listeners = append(b.StaticResources.Listeners, l)
				b.StaticResources.Clusters = append(b.StaticResources.Clusters, staticCluster(applicationBehind(w.port), app.port))
			}
		}
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	echoes := func(port uint32, alpn ...string) bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if alpn != nil {
			conn = tls.Client(conn, &tls.Config{Certificates: []tls.Certificate{client.TLS}, InsecureSkipVerify: true, NextProtos: alpn, MinVersion: tls.VersionTLS13}) //nolint:gosec // the server's name is not what is tested
		}
		if _, err := io.WriteString(conn, "\x00knock"); err != nil { // which no one takes for HTTP
			return false
		}
		got := make([]byte, 6)
		_, err = io.ReadFull(conn, got)
		return err == nil && string(got) == "\x00knock"
	}
	for _, w := range worlds {
		name := fmt.Sprintf("%s port of %s in a workload of %s", w.mode, w.protocol, w.other)
		if got, want := echoes(w.port), w.mode != authz.Strict; got != want {
			t.Errorf("%s: plaintext reaches the application: %v", name, got)
		}
		if got, want := echoes(w.port, "istio-opaque"), w.mode != authz.Disable; got != want {
			t.Errorf("%s: mutual TLS of a proxy reaches the application: %v", name, got)
		}
		if got, want := echoes(w.port, "h2", "http/1.1"), w.mode == authz.Strict && w.protocol == protocol.TCP; got != want {
			t.Errorf("%s: TLS of no proxy ends at the proxy, as TCP: %v", name, got) // elsewhere the echo is of TLS itself, or it is HTTP
		}
	}
}

// TestPlaintextIsDeniedBeforeTheListenerRefusesIt has a port that has become STRICT, of whose resources the proxy has those that decide about
// requests and not yet the listener that takes no plaintext: requests on a connection that was open are denied from then on.
func TestPlaintextIsDeniedBeforeTheListenerRefusesIt(t *testing.T) {
	ports := envoytest.FreePorts(t, 3)
	app := webApplication(t)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[2]}
	of := func(port uint32, mode authz.TLSMode) *compile.Workload {
		return &compile.Workload{Class: compile.Class{Namespace: "finance"}, Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.Auto},
			Ports: []compile.InboundPort{{Number: port, Protocol: protocol.HTTP, Mode: mode}}}
	}
	ca := envoytest.NewCA(t)
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	want := map[authz.TLSMode]int{authz.Permissive: 200, authz.Strict: 403}
	modes := []authz.TLSMode{authz.Permissive, authz.Strict}
	for i, now := range modes {
		l := inboundBetween(t, of(ports[i], authz.Permissive), of(ports[i], now), ports[i])
		for _, c := range l.GetFilterChains() {
			if c.GetTransportSocket() != nil {
				staticCertificates(t, c, ca, server)
			}
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, l)
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, staticCluster(applicationBehind(ports[i]), app))
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	for i, now := range modes {
		if got := sendRaw(t, ports[i], "GET / HTTP/1.1\r\nHost: x\r\n"); got != want[now] {
			t.Errorf("plaintext to a port that is %s by now: %d, want %d", now, got, want[now])
		}
	}
}
