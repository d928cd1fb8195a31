package translate_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
)

// TestAClientStaysWithItsEndpoint calls services that keep their clients, over many connections from each of many addresses, and whatever requests say of where
// they are from: a client has one endpoint, and clients have several.
func TestAClientStaysWithItsEndpoint(t *testing.T) {
	envoytest.Find(t)
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 3)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient), sticky: true}
	var web, lines []compile.Endpoint
	for i := range 3 {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }))
		t.Cleanup(srv.Close)
		web = append(web, compile.Endpoint{Address: "127.0.0.1", Port: uint32(srv.Listener.Addr().(*net.TCPAddr).Port), Plain: true})
		lines = append(lines, compile.Endpoint{Address: "127.0.0.1", Port: greeter(t, i), Plain: true})
	}
	s.outbound(ports[0], protocol.HTTP, "web", nil, web...)
	s.outbound(ports[1], protocol.Auto, "auto", nil, web...)
	s.outbound(ports[2], protocol.TCP, "lines", nil, lines...)
	s.start(func(*grpc.Server) {})

	request := func(d *net.Dialer, port uint32, n int) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", n))
		resp, err := (&http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %q, %v", resp.Status, text, err)
		}
		return string(text)
	}
	greeting := func(d *net.Dialer, port uint32, _ int) string {
		conn, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	for _, of := range []struct {
		name string
		port uint32
		call func(*net.Dialer, uint32, int) string
	}{{"HTTP", ports[0], request}, {"what is not declared", ports[1], request}, {"TCP", ports[2], greeting}} {
		chosen := map[string]bool{}
		for client := range 16 { // that all have one of three by chance happens once in fourteen million times
			d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(client+1))}}
			first := of.call(d, of.port, 0)
			chosen[first] = true
			for n := range 8 {
				if again := of.call(d, of.port, n); again != first {
					t.Errorf("%s: client %d had %q and then has %q", of.name, client, first, again)
				}
			}
		}
		if len(chosen) < 2 {
			t.Errorf("%s: all clients have %v", of.name, chosen)
		}
	}
}

// greeter says a number to each who connects, and ends.
func greeter(t *testing.T, n int) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, n)
			conn.Close()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}
