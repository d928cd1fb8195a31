package translate_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestUndeclaredPortsTakeWhatComes goes through the client's and the server's proxy to ports of which nobody says what they speak: a server may speak before its client
// where policies look at identities alone, and a client may let a moment pass before its request, after which its own proxy knows no better than to take it for TCP.
func TestUndeclaredPortsTakeWhatComes(t *testing.T) {
	envoytest.Find(t)
	const greeter = 0 // an application of the case's own
	web := webApplication(t)
	byIdentity := func(id string) authz.Policy {
		return policyOf(t, "identity", `{"rules":[{"from":[{"source":{"principals":["`+id[len("spiffe://"):]+`"]}}]}]}`)
	}
	byPath := policyOf(t, "path", `{"rules":[{"to":[{"operation":{"methods":["GET"],"paths":["/200"]}}]}]}`)
	denied := policyOf(t, "denied", `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/404"]}}]}]}`)
	const get, getOther, nothing = "GET /200 HTTP/1.1\r\nHost: h\r\n\r\n", "GET /404 HTTP/1.1\r\nHost: h\r\n\r\n", ""
	cases := []struct {
		name     string
		app      uint32
		policies []authz.Policy
		says     string
		want     string // what is heard, or the status of the answer
	}{
		{"nothing is demanded, the server greets", greeter, nil, nothing, "hello"},
		{"the client is admitted, the server greets", greeter, []authz.Policy{byIdentity(sceneClient)}, nothing, "hello"},
		{"another is admitted, the server would greet", greeter, []authz.Policy{byIdentity(scenePeer)}, nothing, ""},
		{"a path is admitted, the server would greet", greeter, []authz.Policy{byPath}, nothing, ""},
		{"a path is admitted, and asked for late", web, []authz.Policy{byPath}, get, "200 OK"},
		{"a path is admitted, and another asked for late", web, []authz.Policy{byPath}, getOther, "403 Forbidden"},
		{"a path is denied, and another asked for late", web, []authz.Policy{denied}, get, "200 OK"},
		{"a path is denied, and asked for late", web, []authz.Policy{denied}, getOther, "403 Forbidden"},
		{"the client is admitted, and asks late", web, []authz.Policy{byIdentity(sceneClient)}, get, "200 OK"},
		{"another is admitted, the client asks late", web, []authz.Policy{byIdentity(scenePeer)}, get, ""},
	}
	ports, ca := envoytest.FreePorts(t, 2*len(cases)), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient)}
	greeters := map[string]*application{}
	for i, c := range cases {
		app := c.app
		if app == greeter {
			greeters[c.name] = startApplication(t, true)
			app = greeters[c.name].port
		}
		s.inbound(ports[2*i], app, protocol.Auto, "web", c.policies...)
		s.outbound(ports[2*i+1], protocol.Auto, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[2*i]})
	}
	s.start(func(*grpc.Server) {})
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(ports[2*i+1])))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if app := greeters[c.name]; app != nil {
				if got := heardWithin(conn, 4*time.Second); got != c.want {
					t.Errorf("heard %q, want %q", got, c.want)
				}
				if n := app.accepted.Load(); (n > 0) != (c.want != "") {
					t.Errorf("the application was reached %d times", n)
				}
				return
			}
			if got := heardWithin(conn, 1500*time.Millisecond); got != "" { // longer than the proxy looks for a request
				t.Errorf("heard %q before anything was said", got)
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(conn, c.says); err != nil && c.want != "" {
				t.Fatal(err)
			}
			got := ""
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				got = resp.Status
				resp.Body.Close()
			}
			if got != c.want {
				t.Errorf("the answer is %q, want %q", got, c.want)
			}
		})
	}
}

// heardWithin is what a connection says, if it says something in time.
func heardWithin(conn net.Conn, within time.Duration) string {
	_ = conn.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 64)
	n, _ := conn.Read(buf)
	return string(buf[:n])
}

// A port of mode DISABLE is forwarded at once, whatever a client says first, and if it says nothing: an end before any word arrives, too.
func TestPortsWithoutMutualTLSAreForwardedAtOnce(t *testing.T) {
	envoytest.Find(t)
	greeter, echo := startApplication(t, true), startApplication(t, false)
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Disable, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], greeter.port, protocol.TCP, "greeter")
	s.inbound(ports[1], greeter.port, protocol.Auto, "greeter")
	s.inbound(ports[2], echo.port, protocol.Auto, "echo")
	s.start(func(*grpc.Server) {})
	for _, c := range []struct {
		name string
		port uint32
		says string
		ends bool // after what it says
		want string
	}{
		{"a greeting", ports[0], "", false, "hello"}, {"a greeting, undeclared", ports[1], "", false, "hello"}, {"a greeting to whom only listens", ports[1], "", true, "hello"},
		{"few bytes", ports[2], "x\n", false, "x\n"}, {"few bytes and the end", ports[2], "x\n", true, "x\n"}, {"half a request", ports[2], "GET /", false, "GET /"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(c.port)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, c.says); err != nil {
				t.Fatal(err)
			}
			if c.ends {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
			if got := heardWithin(conn, 800*time.Millisecond); got != c.want { // inspectors wait for a second
				t.Errorf("heard %q, want %q", got, c.want)
			}
		})
	}
}
