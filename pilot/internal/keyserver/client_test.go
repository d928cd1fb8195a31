package keyserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

func none(netip.Addr) string { return "" }

func anywhere(string, netip.Addr) error { return nil }

// keySet is a set with one key of an ID.
func keySet(t *testing.T, id string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestOnlyServersThatMayBeAskedAre(t *testing.T) {
	c := newClient([]string{"Keycloak.auth.svc", "*.inside.example"}, func(at netip.Addr) string {
		if at == netip.MustParseAddr("10.96.0.1") {
			return "is the API server's"
		}
		return ""
	})
	for at, may := range map[string]struct{ any, listed bool }{
		"203.0.113.7": {true, true}, "2001:db8::1": {true, true},
		"10.1.2.3": {false, true}, "172.16.0.1": {false, true}, "192.168.1.1": {false, true}, "fd12::1": {false, true}, "100.64.0.1": {false, true}, "::ffff:10.1.2.3": {false, true},
		"127.0.0.1": {}, "127.8.8.8": {}, "::1": {}, "::ffff:127.0.0.1": {}, "0.0.0.0": {}, "::": {}, "224.0.0.1": {}, "ff02::1": {},
		"169.254.169.254": {}, "::ffff:169.254.169.254": {}, "fe80::1": {}, "fd00:ec2::254": {}, "100.100.100.200": {}, "168.63.129.16": {}, "192.0.0.192": {},
		"64:ff9b::a9fe:a9fe": {}, "2002:a9fe:a9fe::1": {}, "10.96.0.1": {},
	} {
		for host, want := range map[string]bool{"issuer.example": may.any, "keycloak.auth.svc": may.listed, "a.b.inside.example": may.listed, "inside.example": may.any, "evilinside.example": may.any} {
			if err := c.mayAsk(host, netip.MustParseAddr(at).Unmap()); (err == nil) != want {
				t.Errorf("%s at %s: %v, want that it may be asked: %v", host, at, err, want)
			}
		}
	}
}

// TestNobodyIsReachedThroughPilot has every way to send Pilot to an address of its own machine, and counts who comes.
func TestNobodyIsReachedThroughPilot(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var came atomic.Int32
	victim := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.NotFoundHandler(), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			came.Add(1)
		}
	}}
	go func() { _ = victim.Serve(l) }()
	t.Cleanup(func() { victim.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	at := "http://127.0.0.1:" + port
	var target string
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/d/.well-known/openid-configuration" {
			fmt.Fprintf(w, `{"issuer": "http://%s/d", "jwks_uri": %q}`, r.Host, target)
			return
		}
		http.Redirect(w, r, target, http.StatusFound)
	}))
	defer open.Close()
	c := newClient([]string{"127.0.0.1", "localhost", "[::1]"}, none)
	openPort := open.Listener.Addr().(*net.TCPAddr).Port
	c.judge = func(host string, addr netip.Addr) error { // the open server stands for one that may be asked
		if host == "open.example" {
			return nil
		}
		return c.mayAsk(host, addr)
	}
	dial := c.dial
	c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "open.example:") { // as a resolver would have it
			return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", openPort))
		}
		return dial(ctx, network, address)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "127.1.2.3", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"} {
		target = fmt.Sprintf("http://%s:%s/keys", host, port)
		for _, source := range []jwt.Source{{URI: target}, {URI: "http://open.example/redirect"}, {URI: "http://open.example/d", Discovery: true}} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, _, _, err := c.fetch(ctx, source); err == nil {
				t.Errorf("%v to %s: no error", source, target)
			} else if !strings.Contains(err.Error(), "is of this machine") && !strings.Contains(err.Error(), "is not a URL") && !strings.Contains(err.Error(), "no such host") {
				t.Errorf("%v to %s: %v", source, target, err)
			}
			cancel()
		}
	}
	if n := came.Load(); n > 0 {
		t.Errorf("%d connections came to %s", n, at)
	}
}

func TestWhatServersAnswer(t *testing.T) {
	good := keySet(t, "one")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private, KeyID: "p"}}})
	if err != nil {
		t.Fatal(err)
	}
	issuer, again := "", 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/keys":
			w.Header().Set("Cache-Control", "public, max-age=120, must-revalidate")
			fmt.Fprint(w, good)
		case "/tenant/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, issuer, "http://"+r.Host+"/keys")
		case "/html":
			fmt.Fprint(w, "<html>")
		case "/private":
			_, _ = w.Write(secret)
		case "/oct":
			fmt.Fprint(w, `{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a"}]}`)
		case "/huge":
			fmt.Fprint(w, good+strings.Repeat(" ", jwt.MaxKeysSize))
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := fmt.Fprint(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		case "/silent":
			<-r.Context().Done()
		case "/around":
			again++
			http.Redirect(w, r, "/around", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	c := newClient(nil, none)
	c.judge = anywhere
	for source, want := range map[jwt.Source]string{
		{URI: srv.URL + "/keys"}: "", {URI: srv.URL + "/tenant", Discovery: true}: "",
		{URI: srv.URL + "/html"}: "not a JSON Web Key Set", {URI: srv.URL + "/private"}: "no key by which", {URI: srv.URL + "/oct"}: "no key by which",
		{URI: srv.URL + "/huge"}: "more than", {URI: srv.URL + "/endless"}: "more than", {URI: srv.URL + "/silent"}: "deadline", {URI: srv.URL + "/around"}: "redirects",
		{URI: srv.URL + "/none?token=secret"}: "answers 404", {URI: srv.URL, Discovery: true}: "answers 404",
	} {
		issuer = srv.URL + "/tenant"
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		keys, _, lasts, err := c.fetch(ctx, source)
		cancel()
		switch {
		case want == "" && (err != nil || len(keys.IDs) != 1 || keys.IDs[0] != "one" || lasts != 2*time.Minute):
			t.Errorf("%v: %v, %v, %v", source, keys, lasts, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%v: %v, want %q", source, err, want)
		}
	}
	if again != maxRedirects+1 {
		t.Errorf("%d redirects are followed, want %d", again, maxRedirects+1)
	}
	issuer = "https://somebody.else"
	if _, _, _, err := c.fetch(t.Context(), jwt.Source{URI: srv.URL + "/tenant", Discovery: true}); err == nil || !strings.Contains(err.Error(), "somebody.else") {
		t.Errorf("another issuer's document: %v", err)
	}
}

// What has failed is told apart for Events: real servers, and none.
func TestStepsOfAsking(t *testing.T) {
	slow := make(chan struct{})
	defer close(slow)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/slow":
			select {
			case <-slow:
			case <-r.Context().Done():
			}
		default:
			fmt.Fprint(w, "no keys")
		}
	}))
	defer server.Close()
	c := newClient(nil, none)
	c.judge = anywhere
	for at, want := range map[string]string{
		"http://issuer.invalid/keys": "Resolve", "http://127.0.0.1:1/keys": "Connect", server.URL + "/away": "Ask", server.URL + "/slow": "Wait", server.URL + "/keys": "Read",
	} {
		within, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, _, _, err := c.fetch(within, jwt.Source{URI: at}); err == nil || Step(err) != want {
			t.Errorf("%s: %v is of %s, want %s", at, err, Step(err), want)
		}
		cancel()
	}
}
