package translate_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/http2/hpack"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// hostilePaths are ways to write the paths of what is hidden, and much that resembles them: each escape of a byte, each byte as it is, slashes and dots in every
// spelling that some server has taken for one, and what has ended a path too early.
func hostilePaths() (out []string) {
	for b := range 256 {
		for _, form := range []string{"/admin%%%02x", "/%%%02xadmin", "/%%%02x/admin", "/x/%%%02x/admin", "/secret%%%02xx", "/%%%02xsecret/x", "/%%%02x%%%[1]02x/admin", "/%%%02Xdmin", "/admi%%%02X"} {
			out = append(out, fmt.Sprintf(form, b))
		}
		if b > ' ' && b < 0x7f {
			out = append(out, "/admin"+string(rune(b)), "/"+string(rune(b))+"admin", "/secret"+string(rune(b))+"x", "/x/"+string(rune(b))+"/admin")
		}
	}
	before := []string{"/", "//", "///", "/./", "/../", "/x/../", "/.;/", "/..;/", "/;x/", "/;/", "/x/..;/", "/x/..;a=b/", "/%2f", "/%2F/", "/%5c", "/\\", "/%2e/", "/%2e%2e/", "/x/%2e%2e/",
		"/x/%2E./", "/x/..%2f", "/x/..%5c", "/x\\..\\", "/.../", "/x/.../", "/%252e%252e/", "/x/%252e%252e/", "/%c0%ae%c0%ae/", "/x/%c0%ae%c0%ae/", "/%c0%af", "/x/..%c0%af", "/x/%e0%80%ae%e0%80%ae/",
		"/x/..%ef%bc%8f", "/%u002f", "/x/%uff0e%uff0e/", "/%25%32%66", "/x//../", "/x/y/../../", "/x/./../", "/x%2f..%2f", "http://h/", "http://h//", "http://h/x/../", "/%20/../", "/x/%00/../"}
	after := []string{"", "/", "/.", ".", "..", "%20", ";", ";a=b", ";/", "%3b", "%3ba=b", "%00", "%00.html", "%09", "%0d%0a", "?", "?x", "??", "#", "#x", "#/../x", "%23x", "%3fx", "/..;/admin", "%2f", "%2f.", "%5c",
		"/x/..", "/../admin", "/..%2fadmin", "\\", "~", "+", "%", "%2", "%%", "&", ",", ":", "/%2e", "//"}
	for _, b := range before {
		for _, a := range after {
			out = append(out, b+"admin"+a)
		}
		out = append(out, b+"secret/x", b+"secret//x", b+"secret/./x", b+"secret/y/../x", b+"secret%2fx", b+"secret;a/x", b+"x/../secret/x", b+"%73ecret/x", b+"Secret/x", b+"s%65cret/%78")
	}
	slices.Sort(out)
	return slices.Compact(slices.DeleteFunc(out, func(p string) bool { return strings.ContainsAny(p, " \r\n") }))
}

// TestNoServerServesWhatIsDenied denies paths, and sends every spelling of them to an application: with the paths as they are, and normalised by the proxy. What arrives is
// nothing of which nginx, Apache, Tomcat or Go would serve what is denied.
func TestNoServerServesWhatIsDenied(t *testing.T) {
	v := newVerifying(t, 3)
	const spec = `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin","/secret/*"]}}]}]}`
	as := v.workload(nil, policyOf(t, "hidden", spec))
	v.scene.normalizes = true
	normalized := v.workload(nil, policyOf(t, "hidden", spec))
	v.scene.normalizes = false
	open := v.workload(nil)
	v.start()
	paths := hostilePaths()
	all := slices.Clone(paths)
	for _, p := range paths { // what the proxy makes of them
		if n, ok := authz.NormalizePath(p); ok {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	servers := whatServersServe(t, all)
	for server, served := range servers {
		if len(served) < 20 {
			t.Errorf("%s serves what is hidden by %d paths: that tests little", server, len(served))
		}
	}
	arrived := 0
	for _, port := range []uint32{as, normalized} {
		for _, path := range paths {
			resp, _, got := v.ask(port, "GET", path)
			if got == nil {
				if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest {
					t.Errorf("%s: %d", path, resp.StatusCode)
				}
				continue
			}
			arrived++
			sent, _, _ := strings.Cut(got.RequestURI, "?")
			for server, served := range servers {
				if slices.Contains(served, got.RequestURI) || slices.Contains(served, sent) {
					t.Errorf("%s arrives as %s, of which %s serves what is denied", path, got.RequestURI, server)
				}
			}
			if mux(got) {
				t.Errorf("%s arrives as %s, of which Go serves what is denied", path, got.RequestURI)
			}
			if port == normalized && !slices.Contains(all, sent) && !slices.Contains(all, got.RequestURI) {
				t.Errorf("%s arrives as %s, of which nobody knows what servers make", path, got.RequestURI)
			}
		}
	}
	if arrived < 200 {
		t.Errorf("%d requests of %d arrive: everything is denied", arrived, 2*len(paths))
	}
	for _, path := range []string{"/admin", "/secret/x"} { // which is what is there to be denied
		if resp, _, got := v.ask(open, "GET", path); got == nil {
			t.Errorf("%s without a policy: %d", path, resp.StatusCode)
		}
	}
}

// mux says whether Go's own router would serve what is hidden.
func mux(r *http.Request) (served bool) {
	m := http.NewServeMux()
	serve := func(http.ResponseWriter, *http.Request) { served = true }
	m.HandleFunc("/admin", serve)
	m.HandleFunc("/secret/", serve)
	m.ServeHTTP(httptest.NewRecorder(), r)
	return served
}

// TestQueriesAndFragmentsHideNoPath has whatever may follow a path after one that is denied, and after one that is not to be had without a token.
func TestQueriesAndFragmentsHideNoPath(t *testing.T) {
	a := newIssuer(t, "https://issuer.example/a")
	v := newVerifying(t, 2)
	denied := v.workload(nil, policyOf(t, "p", `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"]}}]}]}`))
	verified := v.workload([]compile.Issuer{{Rule: ruleOf(a, nil), KeySet: a.published(t)}},
		policyOf(t, "p", `{"action":"DENY","rules":[{"from":[{"source":{"notRequestPrincipals":["*"]}}],"to":[{"operation":{"paths":["/admin"]}}]}]}`))
	v.start()
	good := bearer(a.token(t, jose.ES256, nil))
	for _, follows := range []string{"", "?", "?x=1", "?/public", "?#", "??", "?%23", "#", "#x", "#/public", "#?x", "?x#/public", "?access_token=", "?a=/../public", ";#", "/?", "/.?", "//?x"} {
		path := "/admin" + follows
		if resp, _, arrived := v.ask(denied, "GET", path); arrived != nil && strings.TrimRight(arrived.URL.Path, "/") == "/admin" && !strings.HasPrefix(follows, "/") || resp.StatusCode == 200 && arrived == nil {
			t.Errorf("%s, which is denied: %d", path, resp.StatusCode)
		}
		if resp, _, arrived := v.ask(verified, "GET", path); arrived != nil && !strings.HasPrefix(follows, "/") {
			t.Errorf("%s without a token: %d", path, resp.StatusCode)
		}
	}
	for path, want := range map[string]int{"/admin": 200, "/admin?x=1": 200, "/admin?": 200, "/admin#x": 400, "/admin?x#y": 400} {
		if resp, _, _ := v.ask(verified, "GET", path, good); resp.StatusCode != want {
			t.Errorf("%s with a token: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// both asks over HTTP/1.1 and over HTTP/2, and returns the statuses; 0 is none.
func both(t *testing.T, port uint32, req authz.Request, fields ...hpack.HeaderField) [2]int {
	t.Helper()
	conn := connect(t, port, authz.Request{}, nil)
	first, _, err := newHTTP1(conn).ask(req, fields...)
	if err != nil {
		first = 0
	}
	conn.Close()
	second, _ := sendHTTP2(t, connect(t, port, authz.Request{}, nil), req, fields...)
	return [2]int{first, second}
}

// TestHostsInOtherSpellingsAreDenied denies a host, and asks for it as no less than its name.
func TestHostsInOtherSpellingsAreDenied(t *testing.T) {
	v := newVerifying(t, 1)
	port := v.workload(nil, policyOf(t, "p", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["secret.com"]}}]}]}`))
	v.start()
	for host, want := range map[string]int{"secret.com": 403, "SECRET.com": 403, "sEcReT.CoM": 403, "secret.com:80": 403, "secret.com:8080": 403, "secret.com.": 403, "secret.com.:80": 403, "SECRET.COM.:443": 403,
		"secret.com:0080": 403, "secret.com..": 200, "secret.com:": 400, "secret.com:80@open.com": 400, "open.com@secret.com": 400, "open.com": 200, "xsecret.com": 200, "secret.com.open.com": 200} {
		for i, got := range both(t, port, authz.Request{Method: "GET", Path: "/", Host: host}) {
			if got != want && !(want == 400 && (got == 0 || got == 403)) {
				t.Errorf("HTTP/%d, Host %s: %d, want %d", i+1, host, got, want)
			}
		}
	}
}

// TestEveryLineOfAHeaderIsSeen denies a value of a header, and admits one, and sends it among others.
func TestEveryLineOfAHeaderIsSeen(t *testing.T) {
	v := newVerifying(t, 3)
	deny := v.workload(nil, policyOf(t, "p", `{"action":"DENY","rules":[{"when":[{"key":"request.headers[x]","values":["bad"]}]}]}`))
	unless := v.workload(nil, policyOf(t, "p", `{"action":"DENY","rules":[{"when":[{"key":"request.headers[x]","notValues":["good*"]}]}]}`))
	allow := v.workload(nil, policyOf(t, "p", `{"rules":[{"when":[{"key":"request.headers[x]","values":["good*"]}]}]}`))
	v.start()
	for name, c := range map[string]struct {
		lines               []string
		deny, unless, allow int
	}{
		"the value":                       {[]string{"bad"}, 403, 403, 403},
		"another":                         {[]string{"ok"}, 200, 403, 403},
		"first":                           {[]string{"bad", "ok"}, 403, 403, 403},
		"last":                            {[]string{"ok", "bad"}, 403, 403, 403},
		"in the middle":                   {[]string{"ok", "bad", "ok"}, 403, 403, 403},
		"in a list":                       {[]string{"ok,bad"}, 403, 403, 403},
		"first in a list":                 {[]string{"bad, ok"}, 403, 403, 403},
		"in a list of a line":             {[]string{"ok", "x, bad"}, 403, 403, 403},
		"with spaces":                     {[]string{"ok ,\tbad "}, 403, 403, 403},
		"beside nothing":                  {[]string{"", "bad"}, 403, 403, 403},
		"none":                            {nil, 200, 403, 403},
		"one that is admitted":            {[]string{"good"}, 200, 200, 200},
		"a byte that is not UTF-8":        {[]string{"\xff"}, 200, 403, 403},
		"such a byte after a good word":   {[]string{"good\xff"}, 200, 200, 200},
		"such a byte before a good word":  {[]string{"\xffgood"}, 200, 403, 403},
		"such a byte in a list":           {[]string{"\xff,bad"}, 403, 403, 403},
		"such a byte and a bad line":      {[]string{"\xc3\x28", "bad"}, 403, 403, 403},
		"an overlong letter before a bad": {[]string{"\xc1\xa2ad"}, 200, 403, 403},
	} {
		for which, w := range map[uint32]int{deny: c.deny, unless: c.unless, allow: c.allow} {
			var fields []hpack.HeaderField
			for _, l := range c.lines {
				fields = append(fields, hpack.HeaderField{Name: "x", Value: l})
			}
			for i, got := range both(t, which, authz.Request{Method: "GET", Path: "/", Host: "h"}, fields...) {
				if got != w && got != 400 {
					t.Errorf("%s %q, HTTP/%d, policy %d of (deny, unless, allow): %d, want %d", name, c.lines, i+1, slices.Index([]uint32{deny, unless, allow}, which), got, w)
				}
			}
		}
	}
}
