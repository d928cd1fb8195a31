package push

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// echo is an application that speaks TCP.
func echo(t *testing.T) uint32 {
	t.Helper()
	l := envoytest.Listen(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, which Envoy's end closes
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// A revocation keeps new TCP connections out within moments and ends those that are open, of the identity or of the one certificate, and nobody else's.
func TestRevokedIdentityHasNoTCPConnection(t *testing.T) {
	target := echo(t)
	m := newMesh(t)
	db, endpoints := service("shop", "db", 5432), slice("shop", "db", "127.0.0.3")
	port := &db.Object.(*registry.Service).Ports[0]
	port.Target, port.Protocol = target, protocol.TCP
	endpoints.Object.(*registry.Slice).Ports[0].Number = target
	m.apply(db, endpoints, pod("shop", "db", "db-0", "127.0.0.3"))
	ca := envoytest.NewCA(t)
	m.sidecar(ca, account("shop", "db"), "shop/db-0", target)
	leaf, another := ca.Issue(t, account("shop", "client").String()), ca.Issue(t, account("shop", "other").String())
	serial := leaf.TLS.Leaf.SerialNumber.Text(16)

	dialAs := func(leaf envoytest.Leaf) net.Conn {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.3:%d", target), &tls.Config{ //nolint:gosec // the server's name is not what is tested
			Certificates: []tls.Certificate{leaf.TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"}, MinVersion: tls.VersionTLS13})
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	answers := func(conn net.Conn) bool {
		if conn == nil || conn.SetDeadline(time.Now().Add(5*time.Second)) != nil {
			return false
		}
		buf := make([]byte, 1)
		_, err := conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(buf)
		}
		return err == nil && buf[0] == 'x'
	}
	within := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 20 seconds: %s", what)
			}
		}
	}
	dial := func() net.Conn { return dialAs(leaf) }
	for what, number := range map[string]string{"the identity": "", "the certificate": serial} {
		var open, others net.Conn
		within("a connection", func() bool { open = dial(); return answers(open) })
		within("another's", func() bool { others = dialAs(another); return answers(others) })
		m.apply(revoke("r", "client", number))
		began := time.Now()
		within("refusal", func() bool { return !answers(dial()) })
		t.Logf("%s: refused after %s", what, time.Since(began))
		if open.SetReadDeadline(began.Add(5*time.Second)) != nil {
			t.Fatal("no deadline")
		}
		if _, err := open.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("%s: an open connection goes on, %v", what, err)
		}
		if !answers(others) {
			t.Errorf("%s: another's connection was closed", what)
		}
		m.apply(revoke("r", "client", "abc123"))
		within("a connection again", func() bool { open = dial(); return answers(open) })
		if m.apply(registry.Event{Kind: registry.Revocations, ID: "r"}); !answers(open) {
			t.Errorf("%s: a connection ends by another certificate's revocation", what)
		}
	}
}

// Who asks on over a connection that it has kept is told by each answer that it is denied, and the connection goes on: one that ended while a request was on its
// way would leave it without an answer that says why.
func TestWhoAsksOnIsToldThatItIsDenied(t *testing.T) {
	mine := account("shop", "client")
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	app.Config.Protocols = protocols(true, true)
	app.Start()
	t.Cleanup(app.Close)
	m, o := served(t, uint32(app.Listener.Addr().(*net.TCPAddr).Port), protocol.HTTP, mine)
	denied := policyFor(authz.Deny, authz.Clauses{clause(authz.Principal, authz.Exact, mine.String())})
	for what, change := range map[string]struct{ there, gone registry.Event }{
		"a revocation": {revoke("r", "client", ""), registry.Event{Kind: registry.Revocations, ID: "r"}},
		"a policy":     {denied, registry.Event{Kind: registry.Policies, ID: "shop/p"}},
	} {
		for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
			client := o.client(mine, version)
			dial := client.DialContext
			var dialed atomic.Int32
			client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				dialed.Add(1)
				return dial(ctx, network, address)
			}
			status := func() (int, error) {
				resp, err := o.ask(client, "/")
				if err != nil {
					return 0, err
				}
				_, err = io.Copy(io.Discard, resp.Body)
				return resp.StatusCode, errors.Join(err, resp.Body.Close())
			}
			until := func(wanted int, then time.Duration) {
				t.Helper()
				var first time.Time
				for end := time.Now().Add(20 * time.Second); first.IsZero() || time.Since(first) < then; {
					got, err := status()
					switch {
					case got == wanted && err == nil && first.IsZero():
						first = time.Now()
					case got != wanted && (!first.IsZero() || time.Now().After(end)), err != nil && !first.IsZero():
						t.Fatalf("%s, %s: status %d, %v, want %d", what, version, got, err, wanted)
					}
				}
			}
			until(http.StatusOK, 0)
			connections := dialed.Load()
			m.apply(change.there)
			until(http.StatusForbidden, 3*time.Second)
			m.apply(change.gone)
			until(http.StatusOK, 0)
			if more := dialed.Load() - connections; more != 0 {
				t.Errorf("%s, %s: %d connections more than the one that was kept", what, version, more)
			}
		}
	}
}

// A connection is asked about by each external authorizer whose rules it matches, also by one that comes when others are there already: nobody answers here, so
// who is asked denies. What is open stays.
func TestFurtherAuthorizersOfConnectionsComeAndGo(t *testing.T) {
	mine := account("shop", "client")
	target := echo(t)
	m, o := served(t, target, protocol.TCP, mine)
	port := func(number uint32) authz.Clause { return clause(authz.DestinationPort, authz.Port, fmt.Sprint(number)) }
	asks := func(provider string, number uint32) {
		e := policyFor(authz.Custom, authz.Clauses{port(number)})
		p := e.Object.(*registry.Policy)
		e.ID, p.ID, p.Policy.Name, p.Policy.Provider = "shop/"+provider, "shop/"+provider, provider, provider
		m.apply(e)
	}
	passes := func() bool {
		in, err := o.tcp(mine)
		if err == nil {
			_, err = io.ReadFull(in, make([]byte, 1))
		}
		return err == nil
	}
	soon := func(what string, want bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); passes() != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: a connection passes: %v", what, !want)
			}
		}
	}
	open := o.open("TCP", mine, o.tcp)
	asks("opa", 9)
	soon("one authorizer, of another port", true)
	for _, second := range []uint32{9, target, 9} {
		asks("ward", second)
		soon(fmt.Sprintf("a second one, of port %d", second), second == 9)
	}
	asks("opa", target)
	soon("the first one", false)
	asks("opa", 9)
	m.apply(registry.Event{Kind: registry.Policies, ID: "shop/ward"})
	soon("one again", true)
	asks("opa", target)
	soon("one again, of the port", false)
	if ended, _ := within(time.Second, []*opened{open}, 1); len(ended) > 0 {
		t.Error("what was open has ended")
	}
}
