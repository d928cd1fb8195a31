package translate_test

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// policyOf compiles a policy of namespace finance.
func policyOf(t *testing.T, name, spec string) authz.Policy {
	t.Helper()
	var s security.AuthorizationPolicy
	if err := protojson.Unmarshal([]byte(spec), &s); err != nil {
		t.Fatal(err)
	}
	p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: name}, &s, aliasedOptions)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

// proxy runs a workload's proxy with the policies and returns its port. Its application answers 200 with the path that it got.
func proxy(t *testing.T, ca *envoytest.CA, policies ...authz.Policy) uint32 {
	t.Helper()
	ports := envoytest.FreePorts(t, 2)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners,
		workloadListener(t, policies, false, ports[0], ca, ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")))
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	return ports[0]
}

// A DENY policy could be evaded by whatever the handshake takes for an identity and the policy does not.
func TestHandshakeTakesNothingButIdentities(t *testing.T) {
	ca := envoytest.NewCA(t)
	port := proxy(t, ca, policyOf(t, "not-from-shop", `{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["shop"]}}]}]}`))
	for uri, want := range map[string]int{
		"spiffe://cluster.local/ns/web/sa/a":                http.StatusOK,
		"spiffe://cluster.local/ns/web/sa/a.b-c":            http.StatusOK,
		"spiffe://old.local/ns/web/sa/a":                    http.StatusOK,
		"spiffe://cluster.local/ns/shop/sa/a":               http.StatusForbidden,
		"spiffe://old.local/ns/shop/sa/a":                   http.StatusForbidden,
		"spiffe://cluster.local/x/y/ns/shop/sa/b":           0,
		"spiffe://cluster.local/ns/web/sa/a/ns/shop/sa/b":   0,
		"spiffe://cluster.local/ns/web/x/sa/a":              0,
		"spiffe://cluster.local/ns/shop/sa/a/b":             0,
		"spiffe://cluster.local/ns/shop/sa/":                0,
		"spiffe://cluster.local/ns//sa/a":                   0,
		"spiffe://cluster.local/ns/shop":                    0,
		"spiffe://cluster.local/":                           0,
		"spiffe://cluster.local/ns/Shop/sa/a":               0,
		"spiffe://cluster.local/ns/shop./sa/a":              0,
		"spiffe://cluster.local/ns/a.b/sa/a":                0,
		"spiffe://cluster.local/ns/-shop/sa/a":              0,
		"spiffe://cluster.local/ns/%73hop/sa/a":             0,
		"spiffe://cluster.local/ns/shop/sa/a..b":            0,
		"spiffe://cluster.local/NS/shop/sa/a":               0,
		"spiffe://cluster.local/ns/shop/sa/a?b":             0,
		"spiffe://cluster.local/ns/shop/sa/a#b":             0,
		"spiffe://clusterxlocal/ns/web/sa/a":                0,
		"spiffe://cluster.local.example/ns/web/sa/a":        0,
		"spiffe://cluster.local:1/ns/web/sa/a":              0,
		"spiffe://u@cluster.local/ns/web/sa/a":              0,
		"spiffe://oldxlocal/ns/web/sa/a":                    0,
		"SPIFFE://cluster.local/ns/web/sa/a":                0,
		"https://cluster.local/ns/web/sa/a":                 0,
		"spiffe://cluster.local/ns/web/sa/a\n":              0,
		"x spiffe://cluster.local/ns/web/sa/a":              0,
		"spiffe://cluster.local/ns/web/sa/a,spiffe://c/n/s": 0,
	} {
		leaf := ca.IssueChanged(t, "spiffe://cluster.local/ns/a/sa/b", names(t, uriName(uri)))
		if got := askAs(t, port, leaf); got != want {
			t.Errorf("%q: answer %d, want %d (0 is a refused handshake)", uri, got, want)
		}
	}
	// Two names, of which each server would have to choose one.
	leaf := ca.IssueChanged(t, "spiffe://cluster.local/ns/a/sa/b", func(c *x509.Certificate) {
		names(t, uriName("spiffe://cluster.local/ns/shop/sa/a"), uriName("spiffe://cluster.local/ns/web/sa/a"))(c)
	})
	if got := askAs(t, port, leaf); got == http.StatusOK {
		t.Error("a certificate with two identities evades a policy about one of them")
	}
}

// askAs returns the status of the answer to a request with a client certificate, 0 if there is none.
func askAs(t *testing.T, port uint32, leaf envoytest.Leaf) int {
	t.Helper()
	conn := dial(t, port, leaf)
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: payroll\r\n\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// An authority with user information, or with whatever no name or address has, is answered with 400 or not at all,
// whatever the policies, over both protocols; and what follows a host that a policy names changes nothing.
func TestAuthorityIsAHostAndMaybeAPort(t *testing.T) {
	ca := envoytest.NewCA(t)
	only := proxy(t, ca, policyOf(t, "only-here", `{"rules":[{"to":[{"operation":{"hosts":["example.com","shop.example:8080"]}}]}]}`))
	never := proxy(t, ca, policyOf(t, "not-here", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["example.com","shop.example:8080"]}}]}]}`))
	none := proxy(t, ca)
	for _, c := range []struct {
		host              string
		only, never, none int
	}{
		{"example.com", 200, 403, 200},
		{"EXAMPLE.com", 200, 403, 200},
		{"example.com:80", 403, 403, 200},
		{"example.com.", 403, 403, 200},
		{"example.com.:443", 403, 403, 200},
		{"example.com:080", 403, 403, 200},
		{"shop.example:8080", 200, 403, 200},
		{"shop.example:08080", 403, 403, 200},
		{"shop.example.:8080", 403, 403, 200},
		{"shop.example", 403, 200, 200},
		{"evil.example", 403, 200, 200},
		{"[::1]:80", 403, 200, 200},
		{"example.com:x", 400, 400, 400},
		{"example.com:80@evil.example", 400, 400, 400},
		{"u@example.com", 400, 400, 400},
		{"example.com:", 400, 400, 400},
		{"example.com:123456", 400, 400, 400},
		{"example.com,evil.example", 400, 400, 400},
		{"example%2ecom", 400, 400, 400},
		{"example.com;x", 400, 400, 400},
		{"exa[mple.com", 400, 400, 400},
	} {
		for name, p := range map[string]struct {
			port uint32
			want int
		}{"only": {only, c.only}, "never": {never, c.never}, "none": {none, c.none}} {
			for _, over2 := range []bool{false, true} {
				req := authz.Request{Method: "GET", Path: "/", Host: c.host}
				got, _ := send(t, p.port, req, nil, over2)
				if over2 && p.want == 400 && got == 0 { // the stream is reset
					got = 400
				}
				if got != p.want {
					t.Errorf("policy %s, HTTP/2 %v, %q: %d, want %d", name, over2, c.host, got, p.want)
				}
			}
		}
	}
	// Two of them over HTTP/1, an other Host beside :authority over HTTP/2, and the absolute form.
	for raw, want := range map[string]int{
		"GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n":             400,
		"GET http://example.com/ HTTP/1.1\r\nHost: evil.example\r\n":                200,
		"GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n":                403,
		"GET http://example.com:80@evil.example/ HTTP/1.1\r\nHost: example.com\r\n": 403,
		"GET / HTTP/1.0\r\n": 403,
	} {
		if got := sendRaw(t, only, raw); got != want {
			t.Errorf("%q: %d, want %d", raw, got, want)
		}
	}
	conn := connect(t, only, authz.Request{}, nil)
	evil := authz.Request{Method: "GET", Path: "/", Host: "evil.example"}
	if got, _ := sendHTTP2(t, conn, evil, hpack.HeaderField{Name: "host", Value: "example.com"}); got == 200 {
		t.Error("over HTTP/2 the header host counts for more than :authority")
	}
}

func sendRaw(t *testing.T, port uint32, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, request+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// An application may fold what HTTP does not.
func TestMethodInAnotherSpellingIsDenied(t *testing.T) {
	ca := envoytest.NewCA(t)
	for name, p := range map[string]authz.Policy{
		"DENY methods":     policyOf(t, "p", `{"action":"DENY","rules":[{"to":[{"operation":{"methods":["DELETE"]}}]}]}`),
		"ALLOW notMethods": policyOf(t, "p", `{"rules":[{"to":[{"operation":{"notMethods":["DELETE"]}}]}]}`),
	} {
		port := proxy(t, ca, p)
		for method, want := range map[string]int{"DELETE": 403, "delete": 403, "Delete": 403, "GET": 200, "get": 403, "PROPFIND": 200} {
			if got, _ := send(t, port, authz.Request{Method: method, Path: "/", Host: "x"}, nil, true); got != want {
				t.Errorf("%s, %s: %d, want %d", name, method, got, want)
			}
		}
	}
	port := proxy(t, ca, policyOf(t, "p", `{"rules":[{"to":[{"operation":{"paths":["/*"]}}]}]}`))
	if got, _ := send(t, port, authz.Request{Method: "delete", Path: "/", Host: "x"}, nil, true); got != 200 {
		t.Errorf("no rule looks at methods: %d", got)
	}
}

// A header that the proxies take off before a rule could see it is refused in a policy; others must be seen.
func TestHeadersThatNoRuleSees(t *testing.T) {
	ca := envoytest.NewCA(t)
	for _, header := range []string{"host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "expect", "content-type",
		"content-length",
		"x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-envoy-internal", "x-envoy-original-path", "authorization",
		"cookie", "forwarded", "via", "proxy-authorization", "http2-settings"} {
		var s security.AuthorizationPolicy
		if err := protojson.Unmarshal(fmt.Appendf(nil, `{"action":"DENY","rules":[{"when":[{"key":"request.headers[%s]","values":["*"]}]}]}`, header), &s); err != nil {
			t.Fatal(err)
		}
		_, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: "p"}, &s, aliasedOptions)
		if len(problems) > 0 {
			continue
		}
		value := map[string]string{"te": "trailers", "content-length": "0", "expect": "100-continue"}[header]
		if value == "" {
			value = "x"
		}
		port := proxy(t, ca, policyOf(t, "p", fmt.Sprintf(`{"action":"DENY","rules":[{"when":[{"key":"request.headers[%s]","values":["*"]}]}]}`, header)))
		if got := sendRaw(t, port, "GET / HTTP/1.1\r\nHost: x\r\n"+header+": "+value+"\r\n"); got != 403 {
			t.Errorf("a policy may name header %s, and does not see it: %d", header, got)
		}
	}
}

// An identity is the same under each trust domain of the mesh: who is admitted or revoked under one is under all.
func TestIdentityIsTheSameUnderEachTrustDomain(t *testing.T) {
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 2)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, workloadListener(t,
		[]authz.Policy{policyOf(t, "p", `{"rules":[{"from":[{"source":{"principals":["old.local/ns/shop/sa/web","cluster.local/ns/shop/sa/thief"]}}]}]}`)},
		false, ports[0], ca, ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll"),
		revocation.Revocation{Name: "r", Identity: "spiffe://cluster.local/ns/shop/sa/thief"}))
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	for id, want := range map[string]int{
		"spiffe://cluster.local/ns/shop/sa/web": 200, "spiffe://old.local/ns/shop/sa/web": 200,
		"spiffe://cluster.local/ns/shop/sa/other": 403, "spiffe://old.local/ns/shop/sa/thief": 403, "spiffe://cluster.local/ns/shop/sa/thief": 403,
		"spiffe://elsewhere.local/ns/shop/sa/web": 0,
	} {
		if got := askAs(t, ports[0], ca.Issue(t, id)); got != want {
			t.Errorf("%s: %d, want %d", id, got, want)
		}
	}
}
