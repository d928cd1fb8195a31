package translate_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestWhatIsNotReadIsSaid has applications send heads that are too long or malformed: the answer says so, and so does a line in the log of the proxy that could not
// read it, whichever side that is on.
func TestWhatIsNotReadIsSaid(t *testing.T) {
	envoytest.Find(t)
	answers := map[string]string{
		"/long":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: " + strings.Repeat("x", 130<<10) + "\r\n\r\nok",
		"/many":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + strings.Repeat("X-Many: x\r\n", 1100) + "\r\nok",
		"/broken": "HTTP/1.1 200 OK\r\nContent Length: 2\r\n\r\nok",
		"/431":    "HTTP/1.1 431 Own\r\nContent-Length: 3\r\n\r\nown",
		"/502":    "HTTP/1.1 502 Own\r\nContent-Length: 3\r\n\r\nown",
	}
	app := answering(t, answers)
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient), loggers: "envoy.access_loggers.stderr"}
	s.inbound(ports[0], app, protocol.HTTP, "web")
	s.outbound(ports[1], protocol.HTTP, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[0]})
	s.outbound(ports[2], protocol.HTTP, "plain", nil, compile.Endpoint{Address: "127.0.0.1", Port: app, Plain: true})
	log := s.start(func(*grpc.Server) {})

	const answerIsNone, tooLong = "the server's answer is no HTTP that the proxy reads", "the head of the request is too long for the proxy (at most 128 KB and 1024 lines)"
	want := map[string]int{}
	for _, c := range []struct {
		path, head string
		status     int
		body, by   string // by whose proxy the answer was made, empty if by none
		details    string
	}{
		{"/long", "", 502, answerIsNone, "server", "upstream_reset_before_response_started{protocol_error}"},
		{"/many", "", 502, answerIsNone, "server", "upstream_reset_before_response_started{protocol_error}"},
		{"/broken", "", 502, answerIsNone, "server", "upstream_reset_before_response_started{protocol_error}"},
		{"/431", "", 431, "own", "", ""}, {"/502", "", 502, "own", "", ""},
		{"/long-request", "X-Long: " + strings.Repeat("x", 130<<10) + "\r\n", 431, tooLong, "client", "http1.headers_too_large"},
		{"/many-lines", strings.Repeat("X-Many: x\r\n", 1100), 431, tooLong, "client", "http1.too_many_headers"},
		{"/no-request", "x y: z\r\n", 400, "", "client", "http1.codec_error"},
	} {
		for where, port := range map[string]uint32{"in the mesh": ports[1], "in plaintext": ports[2]} {
			t.Run(c.path+" "+where, func(t *testing.T) {
				conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				go func() { _, _ = io.WriteString(conn, "GET "+c.path+" HTTP/1.1\r\nHost: h\r\n"+c.head+"\r\n") }()
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != c.status || !strings.HasPrefix(string(body), c.body) {
					t.Errorf("%d %q, want %d %q", resp.StatusCode, body, c.status, c.body)
				}
			})
			if by := c.by; by != "" {
				if where == "in plaintext" { // the server has no proxy
					by = "client"
				}
				want[fmt.Sprint(by, c.status, c.details)]++
			}
		}
	}
	var got map[string]int
	for deadline := time.Now().Add(30 * time.Second); !maps.Equal(got, want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the proxy's log has %v, want %v", got, want)
		}
		got = map[string]int{}
		for _, l := range lines(t, log) {
			got[fmt.Sprint(l["reporter"], l["code"], l["details"])]++
		}
	}
}

// answering is an application that answers by the path of the request.
func answering(t *testing.T, answers map[string]string) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return accepting(t, l, func(c net.Conn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, answers[req.URL.Path])
		}
	})
}

// lines are those of the proxy's own log that are objects.
func lines(t *testing.T, log string) (out []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		var object map[string]any
		if json.Unmarshal([]byte(l), &object) == nil {
			out = append(out, object)
		}
	}
	return out
}
