package translate_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
)

// TestClientsDoNotChooseTheCluster asks a service for what another one has, by the header of which the shared connection manager's route
// takes the cluster.
func TestClientsDoNotChooseTheCluster(t *testing.T) {
	envoytest.Find(t)
	const header = "x-bulwark-cluster"
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 3)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient)}
	answering := func(name string) compile.Endpoint {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s, told %q, at %s", name, r.Header.Values(header), r.Host)
		}))
		t.Cleanup(srv.Close)
		return compile.Endpoint{Address: "127.0.0.1", Port: uint32(srv.Listener.Addr().(*net.TCPAddr).Port), Plain: true}
	}
	ledger, auto, vault := ports[0], ports[1], ports[2]
	s.outbound(ledger, protocol.HTTP, "ledger", nil, answering("ledger"))
	s.outbound(auto, protocol.Auto, "auto", nil, answering("auto"))
	s.outbound(vault, protocol.HTTP, "vault", nil, answering("vault"))
	s.start(func(*grpc.Server) {})

	other := fmt.Sprintf("outbound|%d||vault.finance.svc.cluster.local", vault)
	for _, of := range []struct {
		name, want string
		port       uint32
		header     http.Header
	}{
		{"nothing", "ledger", ledger, http.Header{}},
		{"nothing, where the protocol is not declared", "auto", auto, http.Header{}},
		{"another's cluster", "ledger", ledger, http.Header{header: {other}}},
		{"another's cluster, where the protocol is not declared", "auto", auto, http.Header{header: {other}}},
		{"another's cluster twice", "ledger", ledger, http.Header{header: {other, other}}},
		{"in another spelling", "ledger", ledger, http.Header{"X-Bulwark-Cluster": {other}}},
		{"nothing in it", "ledger", ledger, http.Header{header: {""}}},
		{"that it is the connection's", "ledger", ledger, http.Header{header: {other}, "Connection": {header}}},
		{"that it is one of the connection's", "ledger", ledger, http.Header{header: {other}, "Connection": {"keep-alive, " + header}}},
	} {
		t.Run(of.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", of.port), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header, req.Host = of.header, "vault.finance"
			resp, err := (&http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if want := of.want + `, told [], at vault.finance`; err != nil || resp.StatusCode != http.StatusOK || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", resp.Status, got, err, want)
			}
		})
	}
}

// TestServersAreToldWhatIsNotHTTP speaks to services, each of which answers what its proxy was told by ALPN, over ports that declare a protocol
// and one that does not.
func TestServersAreToldWhatIsNotHTTP(t *testing.T) {
	envoytest.Find(t)
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 3)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient)}
	telling := func(name string) compile.Endpoint {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{s.leaf.TLS}, NextProtos: []string{"istio", "istio-opaque"}, MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // the test is over
				}
				go func() {
					defer conn.Close()
					if _, err := conn.Read(make([]byte, 1)); err != nil {
						return
					}
					state := conn.(*tls.Conn).ConnectionState()
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s by %s as %s", name, state.NegotiatedProtocol, state.ServerName)
				}()
			}
		}()
		return compile.Endpoint{Address: "127.0.0.1", Port: uint32(l.Addr().(*net.TCPAddr).Port)}
	}
	web, tcp, auto := ports[0], ports[1], ports[2]
	s.outbound(web, protocol.HTTP, "web", nil, telling("web"))
	s.outbound(tcp, protocol.TCP, "tcp", nil, telling("tcp"))
	s.outbound(auto, protocol.Auto, "auto", nil, telling("auto"))
	s.start(func(*grpc.Server) {})

	const request = "GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n"
	for _, of := range []struct {
		port             uint32
		name, says, want string
	}{
		{web, "web", request, "istio"}, {auto, "auto", request, "istio"},
		{tcp, "tcp", request, "istio-opaque"}, {tcp, "tcp", "knock", "istio-opaque"}, {auto, "auto", "knock", "istio-opaque"},
	} {
		want := fmt.Sprintf("%s by %s as outbound_.%d_._.%[1]s.finance.svc.cluster.local", of.name, of.want, of.port)
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", of.port))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, of.says)
		got, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s, told %q: %q, %v; want %q", of.name, of.says, got, err, want)
		}
	}
}

// TestServiceThatIsGone calls what a proxy has a listener of and no cluster any more: a request is told so, and a connection ends.
func TestServiceThatIsGone(t *testing.T) {
	envoytest.Find(t)
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 2)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.outbound(ports[0], protocol.HTTP, "web", nil)
	s.outbound(ports[1], protocol.TCP, "store", nil)
	s.clusters = nil
	s.start(func(*grpc.Server) {})

	resp, err := (&http.Client{Timeout: 20 * time.Second}).Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(string(text), "is out of reach of "+sceneClient) {
		t.Errorf("%s: %q, %v", resp.Status, text, err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(conn); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection: %q, %v", got, err)
	}
}
