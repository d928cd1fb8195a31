package push

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// streaming is an application whose answers have a beginning and no end, also after an upgrade.
func streaming(t *testing.T) uint32 { return streamingAfter(t, func() {}) }

// streamingAfter calls a function when a request comes that is not answered for now, which is one for /silent.
func streamingAfter(t *testing.T, asked func()) uint32 {
	t.Helper()
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(conn, conn)
			return
		}
		if r.URL.Path != "/silent" {
			_, _ = io.WriteString(w, "data: 1\n\n")
			_ = http.NewResponseController(w).Flush()
		} else {
			asked()
		}
		<-r.Context().Done()
	}))
	app.Config.Protocols = protocols(true, true)
	takesAPort(t, app)
	t.Cleanup(func() { app.CloseClientConnections(); app.Close() })
	return uint32(app.Listener.Addr().(*net.TCPAddr).Port)
}

// opened is a connection or stream on which something has come. It says nothing any more, and ended is closed when it has ended.
type opened struct {
	who   spiffe.ID
	how   string
	ended chan struct{}
}

// opener opens connections to the server's proxy with clients' certificates, from an address of each client's and with a name of the server that each has.
type opener struct {
	t      *testing.T
	target string
	leaves map[spiffe.ID]envoytest.Leaf
	from   map[spiffe.ID]string
	path   string
	tokens map[spiffe.ID]string // which requests have
}

func (o *opener) dialer(who spiffe.ID) *net.Dialer {
	return &net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(o.from[who])}}
}

func (o *opener) config(who spiffe.ID, protocols ...string) *tls.Config {
	return &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{o.leaves[who].TLS}, InsecureSkipVerify: true, ServerName: who.ServiceAccount + ".example", NextProtos: protocols, MinVersion: tls.VersionTLS13}
}

func (o *opener) tls(who spiffe.ID, protocols ...string) (*tls.Conn, error) {
	c, err := tls.DialWithDialer(o.dialer(who), "tcp", o.target, o.config(who, protocols...))
	if err == nil {
		o.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func (o *opener) tcp(who spiffe.ID) (io.Reader, error) {
	c, err := o.tls(who, "istio")
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, "x")
	return c, err
}

func (o *opener) websocket(who spiffe.ID) (io.Reader, error) {
	c, err := o.tls(who, "istio")
	if err != nil {
		return nil, err
	}
	token := ""
	if o.tokens[who] != "" {
		token = "Authorization: Bearer " + o.tokens[who] + "\r\n"
	}
	_, err = io.WriteString(c, "GET "+o.path+" HTTP/1.1\r\nHost: web\r\n"+token+"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("status %s", resp.Status)
	}
	if err == nil {
		_, err = io.WriteString(c, "x")
	}
	return in, err
}

// client speaks one version of HTTP.
func (o *opener) client(who spiffe.ID, version string) *http.Transport {
	p := &http.Protocols{}
	p.SetHTTP1(version == "HTTP/1.1")
	p.SetHTTP2(version == "HTTP/2.0")
	transport := &http.Transport{Protocols: p, DialContext: o.dialer(who).DialContext, TLSClientConfig: o.config(who)}
	o.t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func (o *opener) ask(client *http.Transport, path string) (*http.Response, error) {
	return o.askWith(client, path, "")
}

func (o *opener) askWith(client *http.Transport, path, token string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, "https://"+o.target+path, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.RoundTrip(req)
	if err == nil {
		o.t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

func (o *opener) stream(version string) func(spiffe.ID) (io.Reader, error) {
	return func(who spiffe.ID) (io.Reader, error) {
		resp, err := o.askWith(o.client(who, version), o.path, o.tokens[who])
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK || resp.Proto != version {
			return nil, fmt.Errorf("%s %s", resp.Proto, resp.Status)
		}
		return resp.Body, nil
	}
}

// open opens one, as soon as the proxy admits it, and waits for the first byte on it.
func (o *opener) open(how string, who spiffe.ID, with func(spiffe.ID) (io.Reader, error)) *opened {
	o.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		in, err := with(who)
		if err == nil {
			_, err = io.ReadFull(in, make([]byte, 1))
		}
		if err == nil {
			out := &opened{who, how, make(chan struct{})}
			go func() { // ends with the connection
				defer close(out.ended)
				_, _ = io.Copy(io.Discard, in)
			}()
			return out
		}
		if time.Now().After(end) {
			o.t.Fatalf("%s as %s: %v", how, who, err)
		}
	}
}

// within counts those that have ended, of each client, once as many have ended as are expected, or after the time.
func within(d time.Duration, all []*opened, expected int) (ended map[spiffe.ID]int, took time.Duration) {
	began := time.Now()
	for {
		ended = map[spiffe.ID]int{}
		n := 0
		for _, c := range all {
			select {
			case <-c.ended:
				ended[c.who]++
				n++
			default:
			}
		}
		if took = time.Since(began); n >= expected || took > d {
			return ended, took
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func policyFor(action authz.Action, clauses ...authz.Clauses) registry.Event {
	var rules []authz.Rule
	for i, c := range clauses {
		rules = append(rules, authz.Rule{Index: i, When: c})
	}
	p := authz.Policy{Meta: authz.Meta{Namespace: "shop", Name: "p"}, Action: action, Selector: map[string]string{"app": "web"}, Rules: rules}
	return registry.Event{Kind: registry.Policies, ID: "shop/p", Object: &registry.Policy{ID: "shop/p", Namespace: "shop", Policy: p}}
}

func clause(a authz.Attribute, kind authz.Kind, value string) authz.Clause {
	return authz.Clause{Attribute: a, Values: []authz.Match{{Kind: kind, Value: value}}}
}

// served is an application with a proxy that takes mutual TLS alone, and some clients.
func served(t *testing.T, target uint32, protocol protocol.Protocol, clients ...spiffe.ID) (*testMesh, *opener) {
	t.Helper()
	m := newMesh(t)
	web, endpoints := service("shop", "web", 80), slice("shop", "web", "127.0.0.3")
	port := &web.Object.(*registry.Service).Ports[0]
	port.Target, port.Protocol = target, protocol
	endpoints.Object.(*registry.Slice).Ports[0].Number = target
	strict := &registry.PeerAuth{ID: "shop/strict", Namespace: "shop", PeerPolicy: authz.PeerPolicy{Meta: authz.Meta{Namespace: "shop", Name: "strict"}, Mode: authz.Strict}}
	m.apply(web, endpoints, pod("shop", "web", "web-0", "127.0.0.3"), registry.Event{Kind: registry.PeerAuths, ID: strict.ID, Object: strict})
	ca := envoytest.NewCA(t)
	m.sidecar(ca, account("shop", "web"), "shop/web-0", target)
	o := &opener{t: t, target: fmt.Sprintf("127.0.0.3:%d", target), leaves: map[spiffe.ID]envoytest.Leaf{}, from: map[spiffe.ID]string{}, path: "/"}
	for i, id := range clients {
		o.leaves[id], o.from[id] = ca.Issue(t, id.String()), fmt.Sprintf("127.0.0.%d", 9-4*i)
	}
	return m, o
}

// Connections and streams of two clients are open and silent. A policy comes by which one of them may not go on: all that are its own end within
// five seconds, and none of the other's does.
func TestWhatAPolicyForbidsEndsAndNothingElse(t *testing.T) {
	mine, theirs := account("shop", "client"), account("bank", "other")
	const each = 5
	principal := func(id spiffe.ID) authz.Clause { return clause(authz.Principal, authz.Exact, id.String()) }
	namespace := func(ns string) authz.Clause {
		return clause(authz.Namespace, authz.Regexp, `spiffe://(?:cluster\.local|other\.example)/ns/`+ns+`/sa/[-a-z0-9.]+`)
	}
	elsewhere := clause(authz.DestinationPort, authz.Port, "9")
	path, asked := clause(authz.Path, authz.Exact, "/other"), clause(authz.Path, authz.Exact, "/")
	address := func(a authz.Attribute, network string) authz.Clause { return clause(a, authz.CIDR, network) }
	forbids := map[string]registry.Event{
		"DENY of the address":            policyFor(authz.Deny, authz.Clauses{address(authz.SourceIP, "127.0.0.8/30")}),
		"ALLOW of the other's address":   policyFor(authz.Allow, authz.Clauses{address(authz.SourceIP, "127.0.0.4/30")}),
		"DENY of the remote address":     policyFor(authz.Deny, authz.Clauses{address(authz.RemoteIP, "127.0.0.9/32")}),
		"DENY of the server's name":      policyFor(authz.Deny, authz.Clauses{clause(authz.SNI, authz.Prefix, "client.")}),
		"DENY at the server's address":   policyFor(authz.Deny, authz.Clauses{address(authz.DestinationIP, "127.0.0.3/32"), principal(mine)}),
		"DENY of the identity":           policyFor(authz.Deny, authz.Clauses{principal(mine)}),
		"DENY of the namespace":          policyFor(authz.Deny, authz.Clauses{namespace("shop")}),
		"DENY of all others":             policyFor(authz.Deny, authz.Clauses{{Attribute: authz.Principal, Not: principal(theirs).Values}}),
		"ALLOW of the other":             policyFor(authz.Allow, authz.Clauses{principal(theirs)}),
		"ALLOW of the other's namespace": policyFor(authz.Allow, authz.Clauses{namespace("bank")}, authz.Clauses{principal(mine), elsewhere}),
	}
	forbidsNothing := map[string]registry.Event{
		"DENY at another port":          policyFor(authz.Deny, authz.Clauses{principal(mine), elsewhere}),
		"DENY of a third":               policyFor(authz.Deny, authz.Clauses{principal(account("shop", "third"))}),
		"DENY of a namespace so begins": policyFor(authz.Deny, authz.Clauses{namespace("sho")}),
		"DENY of another address":       policyFor(authz.Deny, authz.Clauses{address(authz.SourceIP, "127.0.0.10/32")}, authz.Clauses{address(authz.DestinationIP, "127.0.0.4/32")}),
		"DENY of another server's name": policyFor(authz.Deny, authz.Clauses{clause(authz.SNI, authz.Suffix, "client.")}),
		"ALLOW of both":                 policyFor(authz.Allow, authz.Clauses{principal(mine)}, authz.Clauses{namespace("bank")}),
	}
	forbidsSomeRequests := map[string]registry.Event{
		"DENY of a path":    policyFor(authz.Deny, authz.Clauses{principal(mine), path}),
		"ALLOW of the path": policyFor(authz.Allow, authz.Clauses{principal(theirs)}, authz.Clauses{principal(mine), asked}),
	}
	for name, c := range map[string]struct {
		protocol    protocol.Protocol
		application func(*testing.T) uint32
		ways        func(*opener) map[string]func(spiffe.ID) (io.Reader, error)
	}{
		"TCP": {protocol.TCP, echo, func(o *opener) map[string]func(spiffe.ID) (io.Reader, error) {
			return map[string]func(spiffe.ID) (io.Reader, error){"TCP": o.tcp}
		}},
		"HTTP": {protocol.HTTP, streaming, func(o *opener) map[string]func(spiffe.ID) (io.Reader, error) {
			return map[string]func(spiffe.ID) (io.Reader, error){"WebSocket": o.websocket, "SSE over HTTP/1.1": o.stream("HTTP/1.1"), "a stream of HTTP/2": o.stream("HTTP/2.0")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m, o := served(t, c.application(t), c.protocol, mine, theirs)
			ways := c.ways(o)
			openAll := func() (all []*opened) {
				for how, with := range ways {
					for range each {
						all = append(all, o.open(how, mine, with), o.open(how, theirs, with))
					}
				}
				return all
			}
			gone := registry.Event{Kind: registry.Policies, ID: "shop/p"}
			for what, policy := range forbids {
				all := openAll()
				m.apply(policy)
				ended, took := within(5*time.Second, all, each*len(ways))
				if ended[mine] != each*len(ways) {
					t.Errorf("%s: of %d that it forbids %d ended within 5 s", what, each*len(ways), ended[mine])
				}
				more, _ := within(2*time.Second, all, 1+each*len(ways))
				if more[theirs] != 0 {
					t.Errorf("%s: of %d that it does not concern %d ended", what, each*len(ways), more[theirs])
				}
				t.Logf("%s: %d of %d connections ended in %s", what, ended[mine], len(all), took)
				m.apply(gone)
			}
			quiet := maps.Clone(forbidsNothing)
			if c.protocol == protocol.HTTP { // of TCP a rule about requests forbids all
				for what, p := range forbidsSomeRequests {
					quiet[what] = p
				}
			}
			all := openAll() // on each connection of theirs that carries requests, others may be allowed; and what was asked is
			for what, policy := range quiet {
				m.apply(policy)
				if ended, _ := within(1500*time.Millisecond, all, 1); len(ended) > 0 {
					t.Fatalf("%s: %v ended", what, ended)
				}
			}
			if strings.HasPrefix(name, "TCP") {
				m.apply(forbidsSomeRequests["DENY of a path"])
				if ended, _ := within(5*time.Second, all, each); ended[mine] != each || ended[theirs] != 0 {
					t.Errorf("a rule about requests denies TCP connections of the identity: %v ended", ended)
				}
			}
		})
	}
}

// Two clients have several requests open on each connection. A policy by which one path is denied ends what asked for it, whatever else the client may ask for on the connection; a
// request that has no answer yet gets 403.
func TestOfOneConnectionWhatAskedForItEnds(t *testing.T) {
	mine := account("shop", "client")
	asked := make(chan struct{}, 16)
	m, o := served(t, streamingAfter(t, func() { asked <- struct{}{} }), protocol.HTTP, mine)
	none := registry.Event{Kind: registry.Policies, ID: "shop/p"}
	for what, policy := range map[string]registry.Event{
		"DENY of a path":         policyFor(authz.Deny, authz.Clauses{clause(authz.Path, authz.Prefix, "/a")}, authz.Clauses{clause(authz.Path, authz.Exact, "/silent")}),
		"ALLOW of another path":  policyFor(authz.Allow, authz.Clauses{clause(authz.Path, authz.Regexp, "/b(?:/.*)?")}),
		"DENY of all but a path": policyFor(authz.Deny, authz.Clauses{{Attribute: authz.Path, Not: []authz.Match{{Kind: authz.Suffix, Value: "/b"}}}}),
	} {
		var forbidden, others []*opened
		one := o.client(mine, "HTTP/2.0")
		answered := make(chan int, 1)
		for _, path := range []string{"/a?b=/b", "/a", "/b", "/b?c"} {
			stream := o.open("stream of "+path, mine, func(spiffe.ID) (io.Reader, error) {
				resp, err := o.ask(one, path)
				if err != nil || resp.StatusCode != http.StatusOK {
					return nil, fmt.Errorf("%v %w", resp, err)
				}
				return resp.Body, nil
			})
			o.path = path
			websocket, sse := o.open("WebSocket of "+path, mine, o.websocket), o.open("SSE of "+path, mine, o.stream("HTTP/1.1"))
			if strings.HasPrefix(path, "/a") {
				forbidden = append(forbidden, stream, websocket, sse)
			} else {
				others = append(others, stream, websocket, sse)
			}
		}
		go func() { // ends with the request
			resp, err := o.ask(one, "/silent")
			if err != nil {
				answered <- 0
				return
			}
			answered <- resp.StatusCode
		}()
		<-asked
		m.apply(policy)
		ended, took := within(5*time.Second, forbidden, len(forbidden))
		if ended[mine] != len(forbidden) {
			t.Errorf("%s: of %d that it forbids %d ended within 5 s", what, len(forbidden), ended[mine])
		}
		select {
		case status := <-answered:
			if status != http.StatusForbidden {
				t.Errorf("%s: status %d of a request that was under way", what, status)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: a request that is forbidden goes on", what)
		}
		if more, _ := within(2*time.Second, others, 1); len(more) > 0 {
			t.Errorf("%s: of %d that it does not forbid %d ended", what, len(others), more[mine])
		}
		t.Logf("%s: %d ended in %s", what, ended[mine], took)
		m.apply(none)
	}
}

// A client that was let in between two times at which the same policy forbids it is ended by it, though others have been there all the time.
func TestAPolicyThatComesAgainForbidsAgain(t *testing.T) {
	mine, theirs := account("shop", "client"), account("bank", "other")
	m, o := served(t, echo(t), protocol.TCP, mine, theirs)
	denied, allowed := policyFor(authz.Allow, authz.Clauses{clause(authz.Principal, authz.Exact, theirs.String())}), registry.Event{Kind: registry.Policies, ID: "shop/p"}
	m.apply(denied)
	all := []*opened{o.open("TCP", theirs, o.tcp)}
	for range 3 {
		m.apply(allowed)
		connection := o.open("TCP", mine, o.tcp)
		all = append(all, o.open("TCP", theirs, o.tcp))
		m.apply(denied)
		if ended, _ := within(5*time.Second, []*opened{connection}, 1); ended[mine] != 1 {
			t.Fatal("what was let in between goes on")
		}
	}
	if ended, _ := within(2*time.Second, all, 1); len(ended) > 0 {
		t.Errorf("%v ended", ended)
	}
}

// Many streams and connections are forbidden at once.
func TestManyEndAtOnce(t *testing.T) {
	mine, theirs := account("shop", "client"), account("bank", "other")
	m, o := served(t, streaming(t), protocol.HTTP, mine, theirs)
	const clients, each = 8, 100
	var all []*opened
	for _, who := range []spiffe.ID{mine, theirs} {
		for i := range clients {
			client := o.client(who, []string{"HTTP/2.0", "HTTP/1.1"}[i%2])
			for range each {
				all = append(all, o.open("stream", who, func(spiffe.ID) (io.Reader, error) {
					resp, err := o.ask(client, "/")
					if err != nil {
						return nil, err
					}
					return resp.Body, nil
				}))
			}
		}
	}
	m.apply(policyFor(authz.Deny, authz.Clauses{clause(authz.Principal, authz.Exact, mine.String())}))
	ended, took := within(5*time.Second, all, clients*each)
	if ended[mine] != clients*each || ended[theirs] != 0 {
		t.Errorf("%v of %d of each ended", ended, clients*each)
	}
	t.Logf("%d ended in %s", ended[mine], took)
}
