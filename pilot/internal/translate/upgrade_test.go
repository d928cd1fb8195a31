package translate_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestRulesSeeWhatIsOffered has rules about the header by which a client offers to go on in another protocol, which proxies write something else in meanwhile. What comes to
// the application tells the others of it that do.
func TestRulesSeeWhatIsOffered(t *testing.T) {
	const notFoo = `{"action":"DENY","rules":[{"when":[{"key":"request.headers[upgrade]","values":["foo/1"]}]}]}`
	const noWord = `{"action":"DENY","rules":[{"when":[{"key":"request.headers[upgrade]","values":["offered*"]}]}]}`
	const webSocket = `{"rules":[{"when":[{"key":"request.headers[upgrade]","values":["websocket"]}]}]}`
	const noOffer = `{"action":"DENY","rules":[{"when":[{"key":"request.headers[upgrade]","values":["*"]}]}]}`
	v := newVerifying(t, 5)
	ports := map[string]uint32{"": v.workload(nil), notFoo: v.workload(nil, policyOf(t, "p", notFoo)), noWord: v.workload(nil, policyOf(t, "p", noWord)),
		webSocket: v.workload(nil, policyOf(t, "p", webSocket)), noOffer: v.workload(nil, policyOf(t, "p", noOffer))}
	v.start()
	offer := func(token string, more ...string) []string {
		return append([]string{"Connection: Upgrade", "Upgrade: " + token}, more...)
	}
	for _, c := range []struct {
		policy  string
		headers []string
		arrives string // the header, or no request
		want    int
	}{
		{"", offer("foo/1"), "foo/1", 200},
		{notFoo, offer("foo/1"), "", 403},
		{notFoo, offer("foo/1", "X-Bulwark-Upgrade: bar"), "", 403},
		{notFoo, offer("bar"), "bar", 200},
		{notFoo, offer("bar", "X-Bulwark-Upgrade: foo/1"), "bar", 200},
		{notFoo, nil, "", 200},
		{noWord, offer("foo/1"), "foo/1", 200},
		{noWord, offer("foo/1", "Content-Length: 0"), "foo/1", 200},
		{noWord, offer("offered"), "", 403},
		{webSocket, offer("websocket"), "websocket", 200},
		{webSocket, offer("foo/1"), "", 403},
		{webSocket, offer("foo/1", "X-Bulwark-Upgrade: websocket"), "", 403},
		{webSocket, offer("websocket, foo/1"), "", 403},
		{webSocket, offer("h2c", "X-Bulwark-Upgrade: websocket"), "", 403},
		{webSocket, []string{"X-Bulwark-Upgrade: websocket"}, "", 403},
		{webSocket, nil, "", 403},
		{noOffer, offer("foo/1"), "", 403},
		{noOffer, offer("TLS/1.2"), "", 200}, // it is ignored
		{noOffer, nil, "", 200},
	} {
		resp, _, arrived := v.ask(ports[c.policy], "GET", "/a", c.headers...)
		if resp.StatusCode != c.want || (arrived != nil) != (c.want == 200) {
			t.Errorf("%s of %q: %s, want %d", c.policy, c.headers, resp.Status, c.want)
		}
		if arrived != nil && (arrived.Header.Get("Upgrade") != c.arrives || arrived.Header.Get("X-Bulwark-Upgrade") != "") {
			t.Errorf("%s of %q: arrives as %q", c.policy, c.headers, arrived.Header)
		}
	}
}

// TestNothingFollowsAnOfferBeforeItIsTaken sends a second request behind an offer that the application does not take, which nobody has judged: it does not come to the
// application. An offer with a body does not either, of which a proxy would have to send what follows the head.
func TestNothingFollowsAnOfferBeforeItIsTaken(t *testing.T) {
	envoytest.Find(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan string, 8)
	app := accepting(t, l, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			arrived <- fmt.Sprintf("%s %s %q", req.Method, req.URL, body)
			_, _ = io.WriteString(c, ok)
		}
	})
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], app, protocol.HTTP, "web")
	s.outbound(ports[1], protocol.HTTP, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[0]})
	s.outbound(ports[2], protocol.HTTP, "plain", nil, compile.Endpoint{Address: "127.0.0.1", Port: app, Plain: true})
	s.start(func(*grpc.Server) {})
	const hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, port := range map[string]uint32{"from outside of the mesh": ports[0], "through two proxies": ports[1], "to outside of the mesh": ports[2]} {
		for _, token := range []string{"websocket", "foo/1"} {
			head := strings.Replace(offering(token), "GET", "POST", 1)
			for _, c := range []struct {
				request string
				status  string
				arrives string
			}{
				{head + "\r\n" + hidden, "200", `POST /a ""`},
				{head + "Content-Length: 0\r\n\r\n" + hidden, "200", `POST /a ""`},
				{head + "Content-Length: 4\r\n\r\nbody" + hidden, "403", ""},
				{head + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + hidden, "403", ""},
				{strings.Replace(head, token, "TLS/1.2", 1) + "Content-Length: 4\r\n\r\nbody", "200", `POST /a "body"`},
			} {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = io.WriteString(conn, c.request)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || !strings.HasPrefix(resp.Status, c.status) {
					t.Errorf("%s, %q: %v, %v; want %s", name, c.request, resp, err, c.status)
				}
				time.Sleep(50 * time.Millisecond) // for what should not come
				conn.Close()
				var got []string
				for len(arrived) > 0 {
					got = append(got, <-arrived)
				}
				if strings.Join(got, "; ") != c.arrives {
					t.Errorf("%s, %q: %q arrives, want %q", name, c.request, got, c.arrives)
				}
			}
		}
	}
}
