package translate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestTLSOfTheApplicationsOwnArrivesAsItWasSent has a client and a server speak TLS of their own, without proxies, which says what is right, and through the client's
// and the server's, at ports that are declared and at one that is not: versions, ALPN, names, certificates both ways, sessions that are resumed, refusals.
func TestTLSOfTheApplicationsOwnArrivesAsItWasSent(t *testing.T) {
	envoytest.Find(t)
	own, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 8)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(own.Root) {
		t.Fatal("no root")
	}
	client, server := own.Issue(t, "spiffe://other.domain/client").TLS, own.Issue(t, "spiffe://other.domain/server").TLS
	app := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{server}, NextProtos: []string{"h2", "own"}, MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots})

	mesh := envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: mesh, leaf: mesh.Issue(t, sceneClient)}
	at := map[string]uint32{}
	for i, port := range []struct {
		name string
		p    protocol.Protocol
		mode authz.TLSMode
	}{{"declared, STRICT", protocol.TCP, authz.Strict}, {"undeclared, STRICT", protocol.Auto, authz.Strict}, {"declared, PERMISSIVE", protocol.TCP, authz.Permissive}, {"undeclared, PERMISSIVE", protocol.Auto, authz.Permissive}} {
		s.mode = port.mode
		s.inbound(ports[2*i], app, port.p, "web")
		s.outbound(ports[2*i+1], port.p, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[2*i]})
		at[port.name] = ports[2*i+1]
		if port.mode == authz.Permissive {
			at[port.name+", from outside of the mesh"] = ports[2*i]
		}
	}
	s.start(func(*grpc.Server) {})

	base := func(change func(*tls.Config)) *tls.Config {
		c := &tls.Config{ServerName: "web.example", MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(4),
			InsecureSkipVerify: true, //nolint:gosec // what is tested is whose certificate arrives, below
		}
		change(c)
		return c
	}
	for name, config := range map[string]func() *tls.Config{
		"as it comes":             func() *tls.Config { return base(func(*tls.Config) {}) },
		"TLS 1.2":                 func() *tls.Config { return base(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }) },
		"HTTP/2 by ALPN":          func() *tls.Config { return base(func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }) },
		"a protocol of one's own": func() *tls.Config { return base(func(c *tls.Config) { c.NextProtos = []string{"own"} }) },
		"a protocol that nobody speaks": func() *tls.Config {
			return base(func(c *tls.Config) { c.NextProtos = []string{"nobody"} })
		},
		"the mesh's own protocol": func() *tls.Config { return base(func(c *tls.Config) { c.NextProtos = []string{"own", "istio"} }) },
		"without a name":          func() *tls.Config { return base(func(c *tls.Config) { c.ServerName = "" }) },
		"with a certificate":      func() *tls.Config { return base(func(c *tls.Config) { c.Certificates = []tls.Certificate{client} }) },
		"with a certificate of the mesh": func() *tls.Config {
			return base(func(c *tls.Config) { c.Certificates = []tls.Certificate{s.leaf.TLS} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := spoken(t, app, config())
			for where, port := range at {
				if name == "the mesh's own protocol" && strings.HasSuffix(where, "outside of the mesh") {
					continue // says that it is the mesh's
				}
				if got := spoken(t, port, config()); got != want {
					t.Errorf("%s:\n%s\nwithout proxies:\n%s", where, got, want)
				}
			}
		})
	}
}

// spoken is what becomes of two connections, one after the other.
func spoken(t *testing.T, port uint32, config *tls.Config) string {
	t.Helper()
	var out []string
	for range 2 {
		raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		conn := tls.Client(raw, config)
		_, err = io.WriteString(conn, "hello")
		var heard []byte
		if err == nil {
			heard, err = io.ReadAll(conn)
		}
		state, peer := conn.ConnectionState(), ""
		if len(state.PeerCertificates) > 0 {
			peer = fmt.Sprint(state.PeerCertificates[0].URIs)
		}
		out = append(out, fmt.Sprintf("%s %q %s, resumed %v, heard %q %v", tls.VersionName(state.Version), state.NegotiatedProtocol, peer, state.DidResume, heard, err))
	}
	return strings.Join(out, "; ")
}

// serveTLS is an application that says back what it knows of its client, in two writes.
func serveTLS(t *testing.T, config *tls.Config) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return accepting(t, l, func(raw net.Conn) {
		conn := tls.Server(raw, config)
		defer conn.Close()
		if conn.Handshake() != nil {
			_, _ = io.Copy(io.Discard, raw) // what is left unread would break the connection, and the reason might not arrive
			return
		}
		said := make([]byte, 5)
		if _, err := io.ReadFull(conn, said); err != nil {
			return
		}
		state, peer := conn.ConnectionState(), "nobody"
		if len(state.PeerCertificates) > 0 {
			peer = fmt.Sprint(state.PeerCertificates[0].URIs)
		}
		_, _ = io.WriteString(conn, "+")
		_, _ = fmt.Fprintf(conn, "%s to %q from %s, resumed %v", said, state.ServerName, peer, state.DidResume)
	})
}

// accepting serves each connection of a listener until the test ends, and returns the port.
func accepting(t *testing.T, l net.Listener, serve func(net.Conn)) uint32 {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its client
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				serve(c)
			}()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// TestHTTP2ArrivesAsItWasSent has a client and a server speak HTTP/2 without TLS, without proxies, and through the client's and the server's, at a port that is declared
// and at one that is not.
func TestHTTP2ArrivesAsItWasSent(t *testing.T) {
	envoytest.Find(t)
	app := serveHTTP2(t)
	ports, ca := envoytest.FreePorts(t, 6), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient)}
	at := map[string]uint32{}
	for i, p := range []protocol.Protocol{protocol.HTTP2, protocol.HTTP, protocol.Auto} {
		s.inbound(ports[2*i], app, p, "web")
		s.outbound(ports[2*i+1], p, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[2*i]})
		at[string(p)] = ports[2*i+1]
	}
	s.start(func(*grpc.Server) {})
	many := http.Header{}
	for i := range 900 {
		many.Set(fmt.Sprintf("X-Some-%d", i), strings.Repeat("v", 80))
	}
	for _, c := range []struct {
		name, method, target, body string
		header, trailer            http.Header
	}{
		{name: "a request", method: "GET", target: "/a?x=%2F"},
		{name: "a path that is not normal", method: "GET", target: "/api/queues/%2F/%41//b/../c;d=1?x=%2f//../"},
		{name: "a body", method: "POST", target: "/echo", body: strings.Repeat("body", 100_000)},
		{name: "trailers", method: "POST", target: "/trailers", body: "x", trailer: http.Header{"X-Sum": {"1", "2"}}},
		{name: "a status of one's own", method: "GET", target: "/599"},
		{name: "nothing new", method: "GET", target: "/304"},
		{name: "the head alone", method: "HEAD", target: "/a"},
		{name: "early hints", method: "GET", target: "/hints"},
		{name: "a method of one's own", method: "PURGE", target: "/a"},
		{name: "many headers", method: "GET", target: "/a", header: many},
		{name: "many headers in the answer", method: "GET", target: "/many"},
		{name: "cookies", method: "GET", target: "/a", header: http.Header{"Cookie": {"a=b; c=d"}, "X-A": {"a", "b"}, "X-Empty": {""}}},
		{name: "a stream that is broken", method: "GET", target: "/broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ask := func(port uint32) string {
				p := new(http.Protocols)
				p.SetUnencryptedHTTP2(true)
				transport := &http.Transport{Protocols: p, DisableCompression: true, MaxResponseHeaderBytes: 1 << 20}
				defer transport.CloseIdleConnections()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, c.method, fmt.Sprintf("http://127.0.0.1:%d", port), io.NopCloser(strings.NewReader(c.body)))
				if err != nil {
					t.Fatal(err)
				}
				if c.body == "" {
					req.Body = nil
				}
				req.URL.Opaque, req.Host, req.Header, req.Trailer = c.target, "web", c.header.Clone(), c.trailer
				resp, err := transport.RoundTrip(req)
				if err != nil {
					return "no answer"
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				return fmt.Sprintf("%s %d %s %v, broken %v, %s", resp.Proto, resp.StatusCode, fields(resp.Header), resp.Trailer, err != nil, body)
			}
			want := ask(app)
			for where, port := range at {
				if got := ask(port); got != want {
					t.Errorf("%s:\n%.1500s\nwithout proxies:\n%.1500s", where, got, want)
				}
			}
		})
	}
}

// fields are headers without what proxies are known to add.
func fields(h http.Header) string {
	var out []string
	for name, values := range h {
		if !slices.Contains([]string{"Date", "X-Request-Id", "X-Forwarded-Proto", "X-Forwarded-Client-Cert"}, name) {
			out = append(out, fmt.Sprintf("%s: %q", name, values))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "|")
}

// serveHTTP2 is an application that says what it has heard.
func serveHTTP2(t *testing.T) uint32 {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/599":
			w.WriteHeader(599)
		case "/304":
			w.Header().Set("ETag", `"a"`)
			w.WriteHeader(http.StatusNotModified)
			return
		case "/hints":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
		case "/many":
			for i := range 900 {
				w.Header().Set(fmt.Sprintf("X-Some-%d", i), strings.Repeat("v", 80))
			}
		case "/trailers":
			w.Header().Set("Trailer", "X-End")
			defer w.Header().Set("X-End", "2")
		case "/broken":
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %s %s %v %v: %d %v", r.Proto, r.Method, r.RequestURI, r.Host, fields(r.Header), r.Trailer, len(body), err)
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Config.MaxHeaderBytes = 1 << 20
	srv.Start()
	t.Cleanup(srv.Close)
	return uint32(srv.Listener.Addr().(*net.TCPAddr).Port)
}
