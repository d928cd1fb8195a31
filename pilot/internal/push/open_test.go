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
func streaming(t *testing.T) uint32 {
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
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	app.Config.Protocols = protocols(true, true)
	app.Start()
	t.Cleanup(func() { app.CloseClientConnections(); app.Close() })
	return uint32(app.Listener.Addr().(*net.TCPAddr).Port)
}

// opened is a connection or stream on which something has come. It says nothing any more, and ended is closed when it has ended.
type opened struct {
	who   spiffe.ID
	how   string
	ended chan struct{}
}

// opener opens connections to the server's proxy with clients' certificates.
type opener struct {
	t      *testing.T
	target string
	leaves map[spiffe.ID]envoytest.Leaf
}

func (o *opener) tls(who spiffe.ID, protocols ...string) (*tls.Conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", o.target, &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{o.leaves[who].TLS}, InsecureSkipVerify: true, NextProtos: protocols, MinVersion: tls.VersionTLS13})
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
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
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

func (o *opener) stream(version string) func(spiffe.ID) (io.Reader, error) {
	return func(who spiffe.ID) (io.Reader, error) {
		p := &http.Protocols{}
		p.SetHTTP1(version == "HTTP/1.1")
		p.SetHTTP2(version == "HTTP/2.0")
		transport := &http.Transport{Protocols: p, TLSClientConfig: &tls.Config{ //nolint:gosec // see above
			Certificates: []tls.Certificate{o.leaves[who].TLS}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}
		o.t.Cleanup(transport.CloseIdleConnections)
		req, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, "https://"+o.target+"/", nil)
		if err != nil {
			return nil, err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		o.t.Cleanup(func() { _ = resp.Body.Close() })
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
	path := clause(authz.Path, authz.Exact, "/other")
	forbids := map[string]registry.Event{
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
		"ALLOW of both":                 policyFor(authz.Allow, authz.Clauses{principal(mine)}, authz.Clauses{namespace("bank")}),
	}
	forbidsSomeRequests := map[string]registry.Event{
		"DENY of a path":          policyFor(authz.Deny, authz.Clauses{principal(mine), path}),
		"ALLOW of another's path": policyFor(authz.Allow, authz.Clauses{principal(theirs)}, authz.Clauses{principal(mine), path}),
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
			target := c.application(t)
			m := newMesh(t)
			web, endpoints := service("shop", "web", 80), slice("shop", "web", "127.0.0.3")
			port := &web.Object.(*registry.Service).Ports[0]
			port.Target, port.Protocol = target, c.protocol
			endpoints.Object.(*registry.Slice).Ports[0].Number = target
			strict := &registry.PeerAuth{ID: "shop/strict", Namespace: "shop", PeerPolicy: authz.PeerPolicy{Meta: authz.Meta{Namespace: "shop", Name: "strict"}, Mode: authz.Strict}}
			m.apply(web, endpoints, pod("shop", "web", "web-0", "127.0.0.3"), registry.Event{Kind: registry.PeerAuths, ID: strict.ID, Object: strict})
			ca := envoytest.NewCA(t)
			m.sidecar(ca, account("shop", "web"), "shop/web-0", target)
			o := &opener{t: t, target: fmt.Sprintf("127.0.0.3:%d", target), leaves: map[spiffe.ID]envoytest.Leaf{}}
			for _, id := range []spiffe.ID{mine, theirs} {
				o.leaves[id] = ca.Issue(t, id.String())
			}
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
			all := openAll()
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
