package translate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// caller is a client as it connects.
type caller struct {
	id    spiffe.ID  // zero in plaintext
	sni   string     // that it names
	from  netip.Addr // its own; any if it is zero
	named netip.Addr // of a client for which it connects, as it says by the PROXY protocol; none if it is zero
	http2 bool
}

// connect opens a connection as a mesh client of an identity, or in plaintext without one.
func connect(t *testing.T, port uint32, req authz.Request, clients map[spiffe.ID]envoytest.Leaf) net.Conn {
	t.Helper()
	conn := caller{id: req.Source, sni: req.SNI}.dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), clients)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (c caller) dial(t *testing.T, to netip.AddrPort, clients map[spiffe.ID]envoytest.Leaf) net.Conn {
	t.Helper()
	dialer := net.Dialer{Timeout: 10 * time.Second}
	if c.from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
	}
	conn, err := dialer.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if c.named.IsValid() {
		if _, err := fmt.Fprintf(conn, "PROXY TCP4 %s %s 4711 %d\r\n", c.named, to.Addr(), to.Port()); err != nil {
			t.Fatal(err)
		}
	}
	if c.id.IsZero() {
		return conn
	}
	return tls.Client(conn, &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{clients[c.id].TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"},
		ServerName: c.sni, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}) // the cheapest
}

// asking is a connection on which requests are made, one after the other. No client that there is would send some of these.
type asking interface {
	// ask returns the status of the answer and its headers, or an error if there is none.
	ask(authz.Request, ...hpack.HeaderField) (int, http.Header, error)
}

// http1 asks by HTTP/1.1.
type http1 struct {
	conn net.Conn
	in   *bufio.Reader
}

func newHTTP1(conn net.Conn) *http1 { return &http1{conn, bufio.NewReader(conn)} }

func (c *http1) ask(req authz.Request, more ...hpack.HeaderField) (int, http.Header, error) {
	target := req.Path
	if req.Method == "CONNECT" {
		target = req.Host
	}
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %s HTTP/1.1\r\nHost: %s\r\n", req.Method, target, req.Host)
	for _, f := range append(fieldsOf(req), more...) {
		fmt.Fprintf(&sb, "%s: %s\r\n", f.Name, f.Value)
	}
	if _, err := io.WriteString(c.conn, sb.String()+"\r\n"); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(c.in, &http.Request{Method: req.Method})
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if req.Method != "CONNECT" {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return resp.StatusCode, resp.Header, err
}

func fieldsOf(req authz.Request) (out []hpack.HeaderField) {
	for name, values := range req.Headers {
		for _, v := range values {
			out = append(out, hpack.HeaderField{Name: name, Value: v})
		}
	}
	return out
}

// frames asks by HTTP/2, in frames that are written by hand.
type frames struct {
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	last    uint32 // stream
}

var errUnanswered = errors.New("the stream is reset")

// framesOf is either side of a connection, which has said nothing yet.
func framesOf(conn net.Conn) *frames {
	c := &frames{framer: http2.NewFramer(conn, conn)}
	c.encoder = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return c
}

func newFrames(conn net.Conn) (*frames, error) {
	c := framesOf(conn)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	return c, c.framer.WriteSettings()
}

func (c *frames) ask(req authz.Request, more ...hpack.HeaderField) (int, http.Header, error) {
	fields := []hpack.HeaderField{{Name: ":method", Value: req.Method}, {Name: ":authority", Value: req.Host}}
	if req.Method != "CONNECT" { // RFC 9113, section 8.5
		fields = append(fields, hpack.HeaderField{Name: ":scheme", Value: "http"}, hpack.HeaderField{Name: ":path", Value: req.Path})
	}
	c.block.Reset()
	for _, f := range append(append(fields, fieldsOf(req)...), more...) {
		if err := c.encoder.WriteField(f); err != nil {
			return 0, nil, err
		}
	}
	c.last += 2
	stream := c.last - 1
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		return 0, nil, err
	}
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return 0, nil, err
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			header := http.Header{}
			for _, field := range f.RegularFields() {
				header.Add(field.Name, field.Value)
			}
			status, err := strconv.Atoi(f.PseudoValue("status"))
			return status, header, err
		case *http2.RSTStreamFrame:
			if f.StreamID == stream { // not one whose answer is here already
				return 0, nil, errUnanswered
			}
		case *http2.GoAwayFrame:
			return 0, nil, errUnanswered
		}
	}
}

// send returns the status of the answer, or 0 if there is none, and the rule that decided, if one did.
func send(t *testing.T, port uint32, req authz.Request, clients map[spiffe.ID]envoytest.Leaf, http2 bool) (status int, rule string) {
	t.Helper()
	conn := connect(t, port, req, clients)
	defer conn.Close()
	if http2 {
		status, header := sendHTTP2(t, conn, req)
		return status, ruleIn(header)
	}
	status, header, err := newHTTP1(conn).ask(req)
	if err != nil {
		t.Fatalf("no answer to %+v: %v", req, err)
	}
	return status, ruleIn(header)
}

// sendHTTP2 makes one request over a connection, which it closes.
func sendHTTP2(t *testing.T, conn net.Conn, req authz.Request, more ...hpack.HeaderField) (status int, header http.Header) {
	t.Helper()
	defer conn.Close()
	c, err := newFrames(conn)
	if err != nil {
		t.Fatal(err)
	}
	if status, header, err = c.ask(req, more...); err != nil {
		return 0, nil
	}
	return status, header
}

// ruleIn is the rule that an answer says has decided.
func ruleIn(h http.Header) string {
	if rule, ok := deniedBy(h.Get("x-rule")); ok {
		return rule
	}
	return strings.TrimPrefix(h.Get("x-rule"), "-")
}

// deniedBy is the rule by which Envoy's RBAC says that it has denied, empty if there was none that admits; false if it denied nothing.
func deniedBy(details string) (string, bool) {
	rule, ok := strings.CutPrefix(details, "rbac_access_denied_matched_policy[")
	if rule = strings.TrimSuffix(rule, "]"); !ok || rule == "none" {
		return "", ok
	}
	return rule, true
}
