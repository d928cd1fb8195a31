package featuretest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
)

// What goes to an address of the cluster's Services for which a proxy has no listener is refused by it: every request with a 403 that
// says so, on a connection that ends with it; anything else by the connection's end, also where the client waits for the server to
// speak. The addresses of this machine stand for those of Services here.
func TestOutOfReachIsRefused(t *testing.T) {
	world, err := os.ReadFile("testdata/world.yaml")
	if err != nil {
		t.Fatal(err)
	}
	events, err := fixture.Events([]byte(strings.Replace(string(world), "10.96.0.0/16", "127.0.0.0/8", 1)))
	if err != nil {
		t.Fatal(err)
	}
	at := startEnvoy(t, newPilot(t, events), "finance/payroll-1")
	listeners := envoytest.Admin(t, at, "/listeners")
	found := regexp.MustCompile(`virtualOutbound::(127\.0\.0\.1:\d+)`).FindSubmatch(listeners)
	if found == nil {
		t.Fatalf("no outbound listener in %s", listeners)
	}
	address := string(found[1])
	const why = "is out of reach of"
	for name, request := range map[string]string{
		"a request":               "GET /pay HTTP/1.1\r\nHost: ledger.finance\r\n\r\n",
		"of HTTP/1.0":             "GET /pay HTTP/1.0\r\n\r\n",
		"of no path":              "OPTIONS * HTTP/1.1\r\nHost: ledger.finance\r\n\r\n",
		"with a body":             "POST / HTTP/1.1\r\nHost: ledger.finance\r\nContent-Length: 4\r\n\r\nabcd",
		"for an upgrade":          "GET /chat HTTP/1.1\r\nHost: ledger.finance\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"for another's name":      "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"as a proxy is asked":     "GET http://ledger.finance/pay HTTP/1.1\r\nHost: ledger.finance\r\n\r\n",
		"of a method of nobody's": "PURGE / HTTP/1.1\r\nHost: ledger.finance\r\n\r\n",
	} {
		conn := dial(t, address)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "("+address+") "+why) {
			t.Errorf("%s: %s %q, %v", name, resp.Status, body, err)
		}
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the connection goes on: %v", name, err)
		}
	}
	for name, bytes := range map[string]string{"TLS": "\x16\x03\x01\x00\x10\x01\x00\x00\x0c", "Redis": "*1\r\n$4\r\nPING\r\n", "a client that waits": ""} {
		conn := dial(t, address)
		if _, err := io.WriteString(conn, bytes); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	client := http.Client{Transport: &http.Transport{Protocols: h2c()}, Timeout: 20 * time.Second}
	for range 2 {
		resp, err := client.Get("http://" + address + "/pay")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusForbidden || resp.ProtoMajor != 2 || !strings.Contains(string(body), why) {
			t.Errorf("HTTP/2: %s %q, %v", resp.Status, body, err)
		}
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/shop.Cart/Add", http.NoBody)
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Grpc-Status") != "7" || !strings.Contains(resp.Header.Get("Grpc-Message"), why) {
		t.Errorf("gRPC: %s %v", resp.Status, resp.Header)
	}
}

func h2c() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}
