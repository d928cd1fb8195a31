package translate_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// exchange is a request of HTTP/1 and its answer, as bytes, in turns: the client sends the first of request, the application the first of answer when it has all of
// that, and so on.
type exchange struct {
	name            string
	request, answer []string
	ends            []string // of the parts of request; the end of a head if there is none

	// What the application or the client gets in the mesh, where that is not what they get without proxies, as shown prints it.
	arrives, comes string
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// offering is a request that offers to go on in another protocol, without the end of its head.
func offering(token string) string {
	return "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: " + token + "\r\n"
}

func exchanges() []exchange {
	var many strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&many, "X-Some-%d: %s\r\n", i, strings.Repeat("v", 80))
	}
	switched := func(token string) exchange {
		return exchange{name: "upgrade to " + token,
			request: []string{offering(token) + "\r\n", "bytes"}, ends: []string{"\r\n\r\n", "bytes"},
			answer: []string{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + token + "\r\n\r\n", "back"}}
	}
	one := func(name, request, answer string) exchange {
		e := exchange{name: name, request: []string{request}, answer: []string{answer}}
		switch _, body, _ := strings.Cut(request, "\r\n\r\n"); {
		case strings.HasSuffix(body, "\r\n0\r\n\r\n"): // the last chunk, whichever pieces the proxies make of the others
			e.ends = []string{"\r\n0\r\n\r\n"}
		case body != "":
			e.ends = []string{"\r\n\r\n" + body}
		}
		return e
	}
	unlike := func(e exchange, arrives, comes string) exchange {
		e.arrives, e.comes = arrives, comes
		return e
	}
	withoutOffer := func(token string) exchange {
		return unlike(one("offer of "+token, offering(token)+"\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", "")
	}
	const get = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
	const body = "POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	return []exchange{
		one("names as they are written", "GET /a HTTP/1.1\r\nHost: h\r\nX-CaMeL: 1\r\nSOAPAction: x\r\nx_y: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-AnSwEr: 1\r\nServer: mine\r\nVia: x\r\n\r\nok"),
		one("a reason of one's own", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 299 Odd Reason\r\nContent-Length: 2\r\n\r\nok"),
		one("a path that is not normal", "GET /api/queues/%2F/%41//b/../c;d=1/%zz\\|{}\"<>^`~?x=%2f//../ HTTP/1.1\r\nHost: h\r\n\r\n", ok),
		one("a URL in a path", "GET /proxy/http://a.example:80/x HTTP/1.1\r\nHost: h\r\n\r\n", ok),
		one("a method of one's own", "BAN-it /a HTTP/1.1\r\nHost: h\r\n\r\n", ok),
		one("a method that few know", "PURGE /a HTTP/1.1\r\nHost: h\r\n\r\n", ok),
		{name: "a body that is waited for", request: []string{body, "body"}, ends: []string{"\r\n\r\n", "body"}, answer: []string{"HTTP/1.1 100 Continue\r\n\r\n", ok}},
		one("a body that is not wanted", body, "HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno"),
		one("early hints", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"+ok),
		one("processing", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n"+ok),
		one("headers of others", "GET /a HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Request-Id: mine\r\nAccept-Encoding: br\r\n\r\n", ok),
		one("1,000 headers", "GET /a HTTP/1.1\r\nHost: h\r\n"+many.String()+"\r\n", ok),
		one("1,000 headers in the answer", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"+many.String()+"\r\nok"),
		one("the head alone", "HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n"),
		one("nothing new", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 20\r\n\r\n"),
		{name: "WebSocket in fragments, with a code of its end", ends: []string{"\r\n\r\n", "\x80\x82mask\x00\x00", "\x88\x82mask\x6e\x89"},
			request: []string{"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\n\r\n",
				"\x01\x82mask\x00\x00\x89\x80mask\x80\x82mask\x00\x00", "\x88\x82mask\x6e\x89"},
			answer: []string{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: b\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
				"\x8a\x00\x01\x02ab\x80\x02cd", "\x88\x02\x03\xe8"}},
		{name: "an event", ends: []string{"\r\n\r\n"}, request: []string{"GET /a HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\nLast-Event-ID: 7\r\n\r\n"},
			answer: []string{"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n0\r\n\r\n"}},
		one("a body in pieces", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", ok),
		one("a body with a GET", "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nX-A: a\r\nX-A: b\r\nX-Empty: \r\nCookie: a=b; c=d\r\nAuthorization: Basic x\r\n\r\n", "HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n"),
		one("a partial answer", "GET /a HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\nIf-None-Match: W/\"x\"\r\n\r\n", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok"),
		switched("websocket"), switched("WebSocket"), switched("tcp"), switched("SPDY/3.1"), switched("SPDY/2"), switched("raw"), switched("derp"), switched("tailscale-control-protocol"), switched("PTTH/1.0"),
		switched("irc"), switched("foo/1"), switched("websocket,foo"), switched("IRC/6.9,RTA/x11"), switched("offered"), switched("offered0"), switched("CONNECT"),
		{name: "upgrade without a body that says so", request: []string{strings.Replace(offering("foo/1"), "GET", "POST", 1) + "Content-Length: 0\r\n\r\n", "bytes"}, ends: []string{"\r\n\r\n", "bytes"},
			answer: []string{"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo/1\r\n\r\n", "back"}},
		{name: "upgrade on a connection that says more of itself", request: []string{"GET /a HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUPGRADE: foo/1\r\n\r\n", "bytes"}, ends: []string{"\r\n\r\n", "bytes"},
			answer: []string{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo/1\r\n\r\n", "back"}},
		// What servers answer that do not take an offer.
		one("an offer that is not taken", offering("foo/1")+"\r\n", ok),
		unlike(one("an offer of two, with a blank between them", offering("websocket, foo/1")+"\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: websocket,foo/1] ", ""),
		one("an offer with which the client is sent elsewhere", offering("foo/1")+"\r\n", "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 2\r\n\r\nok"),
		one("an offer of something else than is required", offering("foo/1")+"\r\n", "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: bar\r\nContent-Length: 2\r\n\r\nno"),
		one("an offer without credentials", offering("foo/1")+"\r\n", "HTTP/1.1 401 No\r\nWWW-Authenticate: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"),
		one("an offer for the head alone", strings.Replace(offering("foo/1"), "GET", "HEAD", 1)+"\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n"),
		one("WebSocket that is refused", offering("websocket")+"\r\n", "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"),
		// Envoy makes such an answer anew: it remembers no case of names, and would leave out a body.
		unlike(one("WebSocket that is not taken", offering("websocket")+"\r\n", "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"), "", "HTTP/1.1 302 Found [location: /b] "),
		unlike(one("an offer on two lines", offering("foo/1")+"Upgrade: bar\r\n\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: foo/1,bar] ", ""),
		unlike(one("an offer that is none, as the connection does not say so", "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: foo/1\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("an offer over HTTP/1.0", strings.Replace(offering("foo/1"), "1.1", "1.0", 1)+"\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: foo/1] ", ""),
		// Names of trailers are in lower case: Envoy remembers the case of headers alone.
		unlike(exchange{name: "trailers", ends: []string{"0\r\nX-Sum: 1\r\n\r\n"},
			request: []string{"POST /a HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n"},
			answer:  []string{"HTTP/1.1 200 OK\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-End: 2\r\n\r\n"}},
			"POST /a HTTP/1.1 [Host: h|TE: trailers|Trailer: X-Sum|Transfer-Encoding: chunked] body (<nil>) x-sum: 1||",
			"HTTP/1.1 200 OK [Trailer: X-End|Transfer-Encoding: chunked] ok (<nil>) x-end: 2||"),
		// Offers that nobody has to take, and the proxies do not.
		withoutOffer("TLS/1.2"), withoutOffer("tls/1.0"), withoutOffer("TLS/1.2, HTTP/1.1"), withoutOffer("HTTP/2.0"), withoutOffer("H2C"), withoutOffer(""),
		unlike(one("offer of HTTP/2", "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", ok),
			"GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("offer of TLS with a body", "POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\nContent-Length: 4\r\n\r\nbody", ok), "POST /a HTTP/1.1 [Content-Length: 4|Host: h] body", ""),
		unlike(one("offer of HTTP/2 among others", offering("bar, h2c, foo/1")+"\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: bar,foo/1] ", ""),
		unlike(one("offer of HTTP/2 between other blanks", offering("bar,\th2c ,, http/3,foo/1")+"\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: bar,foo/1] ", ""),
		unlike(one("offer of HTTP/2 on a second line", offering("foo/1")+"Upgrade: h2c\r\n\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: foo/1] ", ""),
		unlike(one("chunks and a length", get, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "", "HTTP/1.1 200 OK [Transfer-Encoding: chunked] ok (<nil>) |"),
		unlike(one("a folded line", get, "HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 2\r\n\r\nok"), "", "HTTP/1.1 200 OK [Content-Length: 2|X-A: a b] ok"),
		unlike(one("no reason", get, "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"), "", "HTTP/1.1 200 OK [Content-Length: 2] ok"),
		unlike(one("an answer of HTTP/1.0", get, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), "", "HTTP/1.1 200 OK [Content-Length: 2] ok"),
		one("bytes beyond ASCII", "GET /a HTTP/1.1\r\nHost: my_host:80\r\nX-A: é\xff\r\n\r\n", "HTTP/1.1 999 X\r\nX-B: é\xff\r\nContent-Length: 2\r\n\r\nok"),
		one("a length without a body", get, "HTTP/1.1 205 X\r\nContent-Length: 2\r\n\r\nok"),
		// What is of one connection is not of the next.
		unlike(one("headers of a connection", "GET /a HTTP/1.1\r\nHost: h\r\nTE: gzip\r\nConnection: TE\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("HTTP/1.0", "GET /a HTTP/1.0\r\nHost: h\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), "GET /a HTTP/1.1 [Host: h] ", ""),
		one("absolute form", "GET http://other:81/a//%2F?x=/ HTTP/1.1\r\nHost: other:81\r\n\r\n", ok),
		one("absolute form with question marks", "GET http://other:81/?a?b?c HTTP/1.1\r\nHost: other:81\r\n\r\n", ok),
		one("absolute form with an empty query", "GET http://[::1]:81/a? HTTP/1.1\r\nHost: [::1]:81\r\n\r\n", ok),
		unlike(one("absolute form without a path", "GET http://other HTTP/1.1\r\nHost: other\r\n\r\n", ok), "GET http://other/ HTTP/1.1 [Host: other] ", ""),
		unlike(one("absolute form, another host", "GET http://other/a HTTP/1.1\r\nHost: mine\r\n\r\n", ok), "GET http://other/a HTTP/1.1 [Host: other] ", ""),
		one("absolute form with credentials of a proxy", "POST http://other/a HTTP/1.1\r\nHost: other\r\nProxy-Authorization: Basic x\r\nContent-Length: 2\r\n\r\nab", ok),
		{name: "a tunnel", request: []string{"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\nProxy-Authorization: Basic x\r\n\r\n", "bytes"}, ends: []string{"\r\n\r\n", "bytes"},
			answer: []string{"HTTP/1.1 200 Connection established\r\nX-Proxy: a\r\n\r\n", "back"}},
		one("a tunnel that is refused", "CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno"),
		// A mark of the proxies' own is not for others to set, nor for applications to see.
		unlike(one("a mark of the proxies", "GET /a HTTP/1.1\r\nHost: h\r\nX-Bulwark-Form: HTTP/1.1http\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("another mark of the proxies", "GET /a HTTP/1.1\r\nHost: h\r\nX-Bulwark-Upgrade: h2c\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("another mark of the proxies, with an offer", offering("foo/1")+"X-Bulwark-Upgrade: h2c\r\nX-Bulwark-Upgrade: h2c\r\n\r\n", ok), "GET /a HTTP/1.1 [Connection: Upgrade|Host: h|Upgrade: foo/1] ", ""),
		unlike(one("another mark of the proxies, with an offer of nothing", offering("")+"X-Bulwark-Upgrade: h2c\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
		unlike(one("another mark of the proxies, with an offer that is none", "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: foo/1\r\nX-Bulwark-Upgrade: h2c\r\n\r\n", ok), "GET /a HTTP/1.1 [Host: h] ", ""),
	}
}

// shown is one side's bytes on a line, without what proxies are known to add: who asks, a name for the request, the time, a length of nothing.
func shown(text string) string {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	if strings.HasPrefix(head, "HTTP/1.1 1") && body != "" && strings.HasPrefix(body, "HTTP/") { // the answer comes after this one
		return shown(head+"\r\n\r\n") + "; " + shown(body)
	}
	first, rest, _ := strings.Cut(head, "\r\n")
	lines := slices.DeleteFunc(strings.Split(rest, "\r\n"), func(l string) bool {
		l = strings.ToLower(l)
		return l == "content-length: 0" || l == "connection: close" || slices.ContainsFunc([]string{"x-request-id: ", "x-forwarded-proto: ", "x-forwarded-client-cert: ", "date: "},
			func(name string) bool { return strings.HasPrefix(l, name) })
	})
	slices.Sort(lines)
	if slices.Contains(lines, "Transfer-Encoding: chunked") { // in which chunks is of one connection (RFC 9112, section 7.1): what they hold and the trailers arrive
		r := bufio.NewReader(strings.NewReader(body))
		chunks, err := io.ReadAll(httputil.NewChunkedReader(r))
		trailers, _ := io.ReadAll(r)
		body = fmt.Sprintf("%s (%v) %s", chunks, err, trailers)
	}
	return fmt.Sprintf("%s [%s] %s", first, strings.Join(lines, "|"), strings.ReplaceAll(body, "\r\n", "|"))
}

// TestHTTP1ArrivesAsItWasSent has a client and an application exchange bytes without proxies, which says what is right, and through the client's and the server's.
func TestHTTP1ArrivesAsItWasSent(t *testing.T) {
	envoytest.Find(t)
	app := newWireApplication(t)
	ports, ca := envoytest.FreePorts(t, 2), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient)}
	s.inbound(ports[0], app.port, protocol.HTTP, "web")
	s.outbound(ports[1], protocol.HTTP, "web", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[0]})
	s.start(func(*grpc.Server) {})
	for _, e := range exchanges() {
		t.Run(e.name, func(t *testing.T) {
			wantArrives, wantComes := app.exchange(t, e, app.port)
			arrives, comes := app.exchange(t, e, ports[1])
			for _, c := range []struct{ who, got, want, unlike string }{{"application", arrives, wantArrives, e.arrives}, {"client", comes, wantComes, e.comes}} {
				if c.unlike == c.want {
					t.Errorf("the %s gets in the mesh what it gets without, which is not expected: %q", c.who, c.want)
				}
				if c.unlike != "" {
					c.want = c.unlike
				}
				if c.got != c.want {
					t.Errorf("the %s gets\n%.2000s\nwant\n%.2000s", c.who, c.got, c.want)
				}
			}
		})
	}
}

// wireApplication plays the application's side of the exchange that is on.
type wireApplication struct {
	port uint32
	mu   sync.Mutex
	on   exchange
	got  chan string // what it has got of this exchange, when it has sent all that it has to send
}

func newWireApplication(t *testing.T) *wireApplication {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &wireApplication{port: uint32(l.Addr().(*net.TCPAddr).Port)}
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			serving.Go(func() { a.serve(c) })
		}
	})
	return a
}

// serve plays one exchange after the other on a connection.
func (a *wireApplication) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		if _, err := r.Peek(1); err != nil {
			return
		}
		a.mu.Lock()
		e, got := a.on, a.got
		a.mu.Unlock()
		var all strings.Builder
		for i, answer := range e.answer {
			end := "\r\n\r\n"
			if i < len(e.ends) {
				end = e.ends[i]
			}
			part, err := readTo(c, r, end)
			all.WriteString(part)
			if err != nil {
				got <- all.String() + "! " + err.Error()
				return
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
		got <- all.String()
	}
}

// exchange plays the client's side, and returns what both have got.
func (a *wireApplication) exchange(t *testing.T, e exchange, port uint32) (arrives, comes string) {
	t.Helper()
	got := make(chan string, 1)
	a.mu.Lock()
	a.on, a.got = e, got
	a.mu.Unlock()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	var all strings.Builder
	for i, part := range e.request {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		end := e.answer[i][len(e.answer[i])-4:]
		if trailers := strings.LastIndex(e.answer[i], "\r\n0\r\n"); trailers >= 0 {
			end = e.answer[i][trailers:]
		}
		answer, err := readTo(c, r, end)
		all.WriteString(answer)
		if err != nil {
			t.Fatalf("after %q the client waits for more: %v", all.String(), err)
		}
	}
	return shown(<-got), shown(all.String())
}

// readTo reads what ends so, in whatever case.
func readTo(c net.Conn, r *bufio.Reader, end string) (string, error) {
	var out []byte
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	for !strings.HasSuffix(strings.ToLower(string(out[max(0, len(out)-2*len(end)):])), strings.ToLower(end)) {
		b, err := r.ReadByte()
		if err != nil {
			return string(out), err
		}
		out = append(out, b)
	}
	return string(out), nil
}
