package translate_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestPathsAreSeenAsEnvoyDoes compares what a rule sees of random paths, letter by letter: as they were sent, and normalised.
func TestPathsAreSeenAsEnvoyDoes(t *testing.T) {
	seed := newSeed()
	t.Logf("to see it again: -seed %d", seed)
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 2))}
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[2]}
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	b.StaticResources.Listeners = append(b.StaticResources.Listeners,
		workloadListener(t, nil, false, ports[0], ca, server), workloadListener(t, nil, true, ports[1], ca, server))
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	seen := map[bool]int{}
	for n := range 8000 {
		path, over2, normalized, port := g.path(), n%2 == 0, n%4 > 1, ports[n%4/2]
		if path == "" || strings.HasPrefix(path, "?") || over2 && closesSlowly(authz.Request{Method: "GET", Path: path, Host: "x"}) && g.IntN(100) > 0 {
			continue
		}
		var status int
		var got string
		if over2 {
			var header http.Header
			status, header = sendHTTP2(t, connect(t, port, authz.Request{}, nil), authz.Request{Method: "GET", Path: path, Host: "x"})
			got = header.Get("x-path")
		} else {
			status, got = pathOverHTTP1(t, connect(t, port, authz.Request{}, nil), path)
		}
		sent, _, _ := strings.Cut(path, "?")
		want, ok := authz.NormalizePath(path)
		if !normalized {
			want, ok = sent, authz.WellFormed(path)
		}
		got, query, _ := strings.Cut(got, "?")
		if status == http.StatusOK && !strings.HasSuffix(path, query) {
			t.Fatalf("%q: the query is %q", path, query)
		}
		switch {
		case status == http.StatusOK && !ok, status != http.StatusOK && ok && (over2 || ascii(path)):
			t.Fatalf("HTTP/2 %v, normalised %v, %q: Envoy answers %d %q, the evaluator says that it is well-formed: %v", over2, normalized, path, status, got, ok)
		case status == http.StatusOK && got != want:
			t.Fatalf("HTTP/2 %v, normalised %v, %q: to Envoy it is %q, to the evaluator %q", over2, normalized, path, got, want)
		}
		seen[ok && authz.IsAmbiguous(want)]++
	}
	if seen[true] < 500 || seen[false] < 500 {
		t.Errorf("ambiguous or not: %v: the test does not test much", seen)
	}
}

func ascii(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 }) }

func pathOverHTTP1(t *testing.T, conn net.Conn, path string) (int, string) {
	t.Helper()
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", path, err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("X-Path")
}

// text is one of the texts, in one of n cases with some byte in it.
func (g *generator) text(n int, of ...string) string {
	s := g.one(of...)
	if g.IntN(n*4) > 0 {
		return s
	}
	i := g.IntN(len(s) + 1)
	return s[:i] + g.byte() + s[i:]
}

// byte is any byte but those that end a line or a part of it, which would make another request.
func (g *generator) byte() string {
	for {
		if b := byte(g.IntN(256)); !bytes.Contains([]byte("\x00\r\n\t "), []byte{b}) {
			return string([]byte{b})
		}
	}
}

// path is one that rules name, or one of all bytes, all escapes, and all that looks like a slash or a dot segment.
func (g *generator) path() string {
	if g.IntN(3) > 0 {
		return g.one("/", "/admin", "//admin", "/%61dmin", "/%2fadmin", "/%5cadmin", "/x/..//admin", "/x/%2e%2e/admin", "/admin?x=1", "/admin;a=b", "/admin/x",
			"/a/b/c", "/a/b", "/a/", "/a", "/a/b/d/c", "/b/c", "/acc.ounts", "/accxounts", "/%252e", "/admin/%c0%ae", "/a/é/c", "/.admin", "/..", "/admin/.",
			"/admin/..", "/Admin", "/a/b%20c/c", "/a/=/c", "/a//c", "/x/..;/admin", "/prefix/%2f../admin", "/a|^{}/c", "//", "/a/c", "/@me", "/%40me", "/a/%40",
			"/a%20b", "/%C3%A9x", "/x%c3%a9", "/a[0]", "/a%5b0%5d", "/x*", "/x%2a", "/x%2A", "/a..", "/a%25", "/a*c", "/a%2ac", "/group%2Fproject", "/group/project",
			"/%%61dmin", "/a%", "/%7Euser", "/~user", "/a/[x]/c", "/a/x%7Cy/c")
	}
	var sb strings.Builder
	if g.IntN(20) > 0 {
		sb.WriteString("/")
	}
	for range g.IntN(8) {
		switch g.IntN(5) {
		case 0:
			sb.WriteString(g.byte())
		case 1:
			fmt.Fprintf(&sb, g.one("%%%02x", "%%%02X"), g.IntN(256))
		case 2:
			sb.WriteString(g.one("/", "//", "\\", "%2f", "%2F", "%5c", "%5C", "/./", "/../", "/..;", "/.;x/", "/.", "/.."))
		case 3:
			sb.WriteString(g.one(".", "..", "%2e", "%2E", ";", "%3b", "%", "%2", "%%", "%25", "?", "#"))
		default:
			sb.WriteString(g.one("a", "admin", "c", "me", "61"))
		}
	}
	return sb.String()
}
