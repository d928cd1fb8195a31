package translate_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// talks are what two programs do with a connection, one step after the other: "c:" is the client and "s:" the server; it says a text, hears one (<), ends its
// side (end), hears the end of the other (<end), or breaks the connection (break, <break).
var talks = map[string][]string{
	"the client first":                        {"c:hello", "s:<hello", "s:world", "c:<world", "c:end", "s:<end", "s:end", "c:<end"},
	"the server first":                        {"s:220 ready", "c:<220 ready", "c:HELO", "s:<HELO", "s:end", "c:<end", "c:end", "s:<end"},
	"the server ends first, the client says":  {"c:a", "s:<a", "s:b", "s:end", "c:<b", "c:<end", "c:more", "s:<more", "c:end", "s:<end"},
	"the client ends first, the server says":  {"c:x\n", "c:end", "s:<x\n", "s:<end", "s:all of it", "c:<all of it", "s:end", "c:<end"},
	"the client ends before any word":         {"c:end", "s:<end", "s:hello", "c:<hello", "s:end", "c:<end"},
	"the server greets and ends":              {"s:bye", "s:end", "c:<bye", "c:<end", "c:end", "s:<end"},
	"nobody says anything":                    {"c:end", "s:<end", "s:end", "c:<end"},
	"both at once":                            {"c:aaaa", "s:bbbb", "c:<bbbb", "s:<aaaa", "c:end", "s:<end", "s:end", "c:<end"},
	"one byte":                                {"c:x", "s:<x", "s:y", "c:<y", "c:end", "s:<end", "s:end", "c:<end"},
	"what could become a request":             {"c:GET ", "s:<GET ", "s:ok", "c:<ok", "c:end", "s:<end", "s:end", "c:<end"},
	"what could become a handshake":           {"c:\x16\x03", "s:<\x16\x03", "s:ok", "c:<ok", "c:end", "s:<end", "s:end", "c:<end"},
	"the server breaks it":                    {"c:hello", "s:<hello", "s:break", "c:<break"},
	"the client breaks it":                    {"c:hello", "s:<hello", "s:ok", "c:<ok", "c:break", "s:<break"},
	"a PostgreSQL client asks for TLS":        {"c:\x00\x00\x00\x08\x04\xd2\x16\x2f", "s:<\x00\x00\x00\x08\x04\xd2\x16\x2f", "s:N", "c:<N", "c:end", "s:<end", "s:end", "c:<end"},
	"a MySQL server greets":                   {"s:J\x00\x00\x00\x0a8.0.36", "c:<J\x00\x00\x00\x0a8.0.36", "c:\x01", "s:<\x01", "c:end", "s:<end", "s:end", "c:<end"},
	"a NATS server greets":                    {"s:INFO {}\r\n", "c:<INFO {}\r\n", "c:CONNECT {}\r\nPING\r\n", "s:<CONNECT {}\r\nPING\r\n", "s:PONG\r\n", "c:<PONG\r\n", "c:end", "s:<end", "s:end", "c:<end"},
	"a client that talks to itself of memory": {"c:get a\r\n", "s:<get a\r\n", "s:END\r\n", "c:<END\r\n", "c:end", "s:<end", "s:end", "c:<end"},
}

// TestTCPArrivesAsItWasSent has two programs talk without proxies, which says what is right, and through the client's and the server's, at a port that is declared TCP.
func TestTCPArrivesAsItWasSent(t *testing.T) {
	envoytest.Find(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	app := uint32(l.Addr().(*net.TCPAddr).Port)
	ports, ca := envoytest.FreePorts(t, 4), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], app, protocol.TCP, "lines")
	s.outbound(ports[1], protocol.TCP, "lines", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[0]})
	s.mode = authz.Disable
	s.inbound(ports[2], app, protocol.TCP, "plain")
	s.outbound(ports[3], protocol.TCP, "plain", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[2], Plain: true})
	s.start(func(*grpc.Server) {})
	for name, steps := range talks {
		t.Run(name, func(t *testing.T) {
			want := talked(t, l, app, steps)
			if strings.Contains(want, "!") {
				t.Fatalf("without proxies it is not as it is written: %s", want)
			}
			for what, at := range map[string]uint32{"over mutual TLS": ports[1], "in plaintext between proxies": ports[3], "in plaintext": ports[2]} {
				if got := talked(t, l, at, steps); got != want {
					t.Errorf("%s:\n%s\nwithout proxies:\n%s", what, got, want)
				}
			}
		})
	}
}

// talked plays the steps, each side in its own order, and returns what became of each; a step that did not go as it is written has a "!" and the reason.
func talked(t *testing.T, l net.Listener, at uint32, steps []string) string {
	t.Helper()
	client, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(at)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	out := make([]string, len(steps))
	play := func(side string, conn func() (*net.TCPConn, error)) {
		c, err := conn()
		if err != nil {
			out[0] += "! no connection: " + err.Error()
			return
		}
		defer c.Close()
		for i, step := range steps {
			if text, ok := strings.CutPrefix(step, side); ok {
				if out[i] = step; !done(c, text) {
					out[i] = fmt.Sprintf("%s! %v", step, lastError(c))
					return
				}
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { play("c:", func() (*net.TCPConn, error) { return client.(*net.TCPConn), nil }) })
	both.Go(func() {
		play("s:", func() (*net.TCPConn, error) {
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
			c, err := l.Accept()
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		})
	})
	both.Wait()
	return strings.Join(out, " ")
}

// done does one step, and reports whether it went as it is written.
func done(c *net.TCPConn, step string) bool {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	switch text, hears := strings.CutPrefix(step, "<"); {
	case step == "end":
		return c.CloseWrite() == nil
	case step == "break":
		return c.SetLinger(0) == nil && c.Close() == nil
	case text == "end" && hears:
		n, err := c.Read(make([]byte, 1))
		return n == 0 && errors.Is(err, io.EOF)
	case text == "break" && hears:
		_, err := io.ReadAll(c)
		return errors.Is(err, syscall.ECONNRESET)
	case hears:
		got := make([]byte, len(text))
		_, err := io.ReadFull(c, got)
		return err == nil && string(got) == text
	}
	_, err := io.WriteString(c, step)
	return err == nil
}

func lastError(c *net.TCPConn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}
