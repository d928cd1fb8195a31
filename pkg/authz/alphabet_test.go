package authz

import (
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// What no request can have is refused, and the reason says what to write where there is something.
func TestValueThatCanNeverMatchIsRefused(t *testing.T) {
	for _, c := range []struct{ field, value, reason string }{
		{"paths", "/group%2Fproject", `%2F is decoded before paths are compared, or denied as ambiguous; write \"/group/project\"`},
		{"paths", "/group%2fproject/*", `write \"/group/project/*\"`},
		{"paths", "//x", `slashes are merged before paths are compared, or denied as ambiguous; write \"/x\"`},
		{"paths", "/x//*", "slashes are merged"},
		{"paths", "/%7Euser", `write \"/~user\"`},
		{"paths", "/größe", `write \"/gr%C3%B6%C3%9Fe\"`},
		{"paths", "/a b", `write \"/a%20b\"`},
		{"paths", "/a/../b", `dot segments are removed before paths are compared, or denied as ambiguous; write \"/b\"`},
		{"paths", "/a/./b/*", "dot segments"},
		{"paths", "*/../x", "dot segments"},
		{"paths", "/a/..", "dot segments"},
		{"paths", "/a\\b", `write \"/a/b\"`},
		{"paths", "/a%5Cb", `write \"/a/b\"`},
		{"paths", "/a|b", `write \"/a%7Cb\"`},
		{"paths", "/a;b", "denied as ambiguous"},
		{"paths", "/a%3Bb", "denied as ambiguous"},
		{"paths", "/a%2561", "denied as ambiguous"},
		{"paths", "/a%0Ab", "denied as ambiguous"},
		{"paths", "/a%zz", "without two hexadecimal digits"},
		{"paths", "/a%2*", "without two hexadecimal digits"},
		{"paths", "/a%00", "%00 is refused"},
		{"paths", "admin", "begins with /"},
		{"paths", "http://host/admin", "begins with /"},
		{"paths", "/a?b", "without query"},
		{"paths", "/a#b", "without query"},
		{"paths", "/a/{*}/../c", "dot segments"},
		{"paths", "/a//{*}", "slashes are merged"},
		{"paths", "/a/{*}/%61", "is decoded"},
		{"paths", "/a, /b", "not a character of paths"},
		{"methods", "get", `upper case; write \"GET\"`},
		{"methods", "Delete", `write \"DELETE\"`},
		{"methods", "GET, POST", "write a list"},
		{"methods", "GET,POST", "write a list"},
		{"methods", "G*T", "is not a method"},
		{"methods", "/pkg.Service/Method", "gRPC"},
		{"methods", "GET ", "write a list"},
		{"hosts", "http://example.com", "neither scheme nor path"},
		{"hosts", "example.com/admin", "neither scheme nor path"},
		{"hosts", "exa*ple.com", "only one *"},
		{"hosts", "*.example.*", "only one *"},
		{"hosts", "a.example, b.example", "write a list"},
		{"hosts", "u@example.com", "user information"},
		{"hosts", "example.com:http", "no host"},
		{"hosts", "bücher.example", "xn--"},
		{"hosts", "::1", "no host"},
		{"principals", "cluster.local/ns/*/sa/client", "with one *"},
		{"principals", "*.local/ns/shop/sa/cli*", "with one *"},
		{"principals", "shop/client", "a principal is"},
		{"principals", "client", "a principal is"},
		{"principals", "cluster.local/ns/shop/sa/client/more", "a principal is"},
		{"principals", "cluster.local/ns/Shop/sa/client", "a principal is"},
		{"principals", "cluster.local/sa/client", "a principal is"},
		{"principals", "cluster.local/ns/shop/*client", "a principal is"},
		{"principals", "cluster.local/namespace*", "a principal is"},
		{"principals", "*shop/client", "a principal is"},
		{"principals", "spiffe://cluster.local/ns/a/sa/b", "without spiffe://"},
		{"principals", "cluster.local/ns/a/sa/b, cluster.local/ns/a/sa/c", "a principal is"},
		{"namespaces", "trial*-policy", "only one *"},
		{"namespaces", "*shop*", "only one *"},
		{"namespaces", "Shop", "not the name of a namespace"},
		{"namespaces", "a.b", "not the name of a namespace"},
		{"namespaces", "shop, web", "write a list"},
		{"serviceAccounts", "shop/*", "have no wildcards"},
		{"serviceAccounts", "a/b/c", "neither <service account>"},
		{"serviceAccounts", "Client", "neither <service account>"},
		{"trustDomains", "cluster.local/ns/a", "not the name of a trust domain"},
		{"trustDomains", "clus*local", "only one *"},
		{"trustDomains", "Cluster.local", "not the name of a trust domain"},
		{"ipBlocks", "10.0.0.0/8, 10.1.0.0/16", "neither an IP address"},
		{"ipBlocks", "10.0.0.*", "neither an IP address"},
		{"ipBlocks", "example.com", "neither an IP address"},
		{"ports", "80, 81", "not a port"},
		{"ports", "80-90", "not a port"},
		{"ports", "*", "not a port"},
		{"ports", "http", "not a port"},
		{"connection.sni", "Example.com", "lower case"},
		{"connection.sni", "exa*ple.com", "not the name of a server"},
		{"connection.sni", "https://example.com", "not the name of a server"},
		{"source.namespace", "a*b", "only one *"},
		{"source.principal", "cluster.local/ns/*/sa/client", "with one *"},
		{"source.serviceAccount", "a/*", "have no wildcards"},
		{"source.ip", "10.0.0.0/33", "neither an IP address"},
		{"destination.port", "http", "not a port"},
		{"request.headers[x]", " a", "neither begins nor ends with a blank"},
		{"request.headers[x]", "a ", "neither begins nor ends with a blank"},
		{"request.headers[host]", "example.com", "use to.operation.hosts"},
		{"request.headers[Connection]", "close", "never seen by a rule"},
		{"request.headers[:method]", "GET", "not the name of a header"},
	} {
		for _, action := range []string{"ALLOW", "DENY", "AUDIT"} {
			for _, negated := range []bool{false, true} {
				spec := withValue(action, c.field, c.value, negated)
				p, problems := policy(t, spec)
				text := fmt.Sprintf("%q", fmt.Sprint(problems))
				if len(problems) != 1 || !strings.Contains(text, c.reason) && !strings.Contains(fmt.Sprint(problems), c.reason) {
					t.Errorf("%s: problems %v, want one with %q", spec, problems, c.reason)
				}
				if len(p.Rules) > 0 && p.Action == Allow && !p.Rules[0].Never {
					t.Errorf("%s: fails open", spec)
				}
			}
		}
	}
}

// withValue is a policy with one value in one field, or in its negation.
func withValue(action, field, value string, negated bool) string {
	name := field
	if negated {
		name = "not" + strings.ToUpper(field[:1]) + field[1:]
	}
	var rule string
	switch {
	case strings.Contains(field, "."):
		values := "values"
		if negated {
			values = "notValues"
		}
		rule = fmt.Sprintf(`"when":[{"key":%q,%q:[%q]}]`, field, values, value)
	case slices.Contains([]string{"hosts", "methods", "paths", "ports"}, field):
		rule = fmt.Sprintf(`"to":[{"operation":{%q:[%q]}}]`, name, value)
	default:
		rule = fmt.Sprintf(`"from":[{"source":{%q:[%q]}}]`, name, value)
	}
	return fmt.Sprintf(`{"action":%q,"rules":[{%s}]}`, action, rule)
}

// What is legal, but maybe not meant so, is enforced with a warning.
func TestValueThatMayNotBeMeantSoIsWarnedOf(t *testing.T) {
	for _, c := range []struct{ field, value, warning string }{
		{"paths", "/service/*health", "only one * at the beginning or at the end stands for anything"},
		{"paths", "*/a*", "only one *"},
		{"paths", "/a,/b", "write a list"},
		{"request.headers[accept]", "text*html", "only one *"},
		{"principals", "other.example/ns/a/sa/b", "neither the mesh's (cluster.local) nor an alias of it"},
		{"trustDomains", "other.example", "neither the mesh's"},
		{"trustDomains", "other*", "neither the mesh's"},
	} {
		p, problems := policy(t, withValue("DENY", c.field, c.value, false))
		if len(problems) > 0 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0].Reason, c.warning) {
			t.Errorf("%s %s: problems %v, warnings %v", c.field, c.value, problems, p.Warnings)
		}
	}
}

func TestUsualValuesAreTakenWithoutAWord(t *testing.T) {
	for field, values := range map[string][]string{
		"paths": {"/", "/*", "*", "/admin", "/api/v1/*", "*.html", "*/health", "/a%20b", "/gr%C3%B6%C3%9Fe",
			"/@me", "/a(b)", "/x.*", "/..a", "/a/{*}/b", "/a/{**}", "/{**}/b", "/pkg.Service/Method", "/a%25", "/a[0]", "*%2A"},
		"methods": {"GET", "*", "P*", "*T", "PROPFIND", "M-SEARCH"},
		"hosts": {"example.com", "EXAMPLE.com", "*.example.com", "example.*", "*", "example.com:8080", "example.com:*",
			"*:80", "[::1]", "[::1]:80", "my_host", "xn--bcher-kva.example", "example.com."},
		"principals": {"*", "cluster.local/ns/a/sa/b", "cluster.local/ns/a/*", "*/sa/b", "*/ns/a/sa/b", "cluster.local/*",
			"*b", "cluster.local/ns/a/sa/b.c", "cl*"},
		"namespaces":              {"a", "*", "a*", "*-a", "a-b"},
		"serviceAccounts":         {"a", "a.b", "shop/a"},
		"trustDomains":            {"cluster.local", "*", "cluster*"},
		"ipBlocks":                {"10.0.0.1", "10.0.0.0/8", "::/0", "10.1.2.3/8"},
		"ports":                   {"80", "65535"},
		"connection.sni":          {"example.com", "*.example.com", "*", "outbound_.80_._.a.b.svc.cluster.local"},
		"request.headers[x-y]":    {"a", "*", "a*", "*a", "a, b", "é"},
		"request.headers[Accept]": {"*/*", "text/*"},
	} {
		for _, v := range values {
			p, problems := policy(t, withValue("DENY", field, v, false))
			if v == "*/*" { // ends with a star that is taken as it is
				p.Warnings = nil
			}
			if len(problems) > 0 || len(p.Warnings) > 0 {
				t.Errorf("%s %q: problems %v, warnings %v", field, v, problems, p.Warnings)
			}
		}
	}
}

// Where a match denies, it takes whatever an application may take for the value. Where one admits, it takes the value alone.
func TestMatchIsWideWhereItDeniesAndNarrowWhereItAdmits(t *testing.T) {
	hosts := func(h string) Request { return Request{HTTP: true, Method: "GET", Path: "/", Host: h} }
	paths := func(p string) Request { return Request{HTTP: true, Method: "GET", Path: p, Host: "x"} }
	normalizedPaths := func(p string) Request { return normalized(paths(p)) }
	for _, c := range []struct {
		field, value   string
		request        func(string) Request
		admits, denies []string // denies: beside what it admits
		neither        []string
	}{
		{"hosts", "example.com", hosts, []string{"example.com", "EXAMPLE.com"}, []string{"example.com:80", "example.com.", "example.com.:443"},
			[]string{"example.com:x", "example.com:80@evil.example", "example.comx", "x.example.com", "example.com..", "example.com:80:80", "example.com,x", "u@example.com"}},
		{"hosts", "example.com:80", hosts, []string{"example.com:80"}, []string{"example.com.:80", "example.com:080"}, []string{"example.com", "example.com:8", "example.com:800"}},
		{"hosts", "*.example.com", hosts, []string{"a.example.com"}, []string{"a.example.com:80", "A.example.com.", "a.example.com.:80"},
			[]string{"example.com", "a.example.com.x", "a.example.com:x"}},
		{"hosts", "*.example.com:80", hosts, []string{"a.example.com:80"}, []string{"a.example.com.:80"}, []string{"a.example.com"}},
		{"hosts", "example.*", hosts, []string{"example.org", "example.org:80"}, nil, []string{"example", "examples.org"}},
		{"hosts", "example.com:*", hosts, []string{"example.com:80"}, []string{"example.com.:80"}, []string{"example.com"}},
		{"hosts", "[::1]", hosts, []string{"[::1]"}, []string{"[::1]:80"}, []string{"[::11]"}},
		{"hosts", "[::1]:80", hosts, []string{"[::1]:80"}, []string{"[::1]:0080"}, []string{"[::1]"}},
		{"hosts", "example.com.", hosts, []string{"example.com."}, []string{"example.com", "example.com:80"}, nil},
		{"paths", "/users/@me", normalizedPaths, []string{"/users/@me", "//users/./@me", "/users%2F@me"}, []string{"/users/%40me"}, []string{"/users/%2540me", "/users/me"}},
		{"paths", "/users/@me", paths, []string{"/users/@me", "/users/@me?x=//%2F"}, []string{"/users/%40me", "//users/@me", "/users/./@me", "/users%2F@me"}, []string{"/users/me"}},
		{"paths", "/users/%40me", paths, []string{"/users/%40me"}, []string{"/users/@me"}, nil},
		{"paths", "/a%c3%a9", paths, []string{"/a%C3%A9", "/a%c3%a9"}, nil, []string{"/a%C3"}},
		{"paths", "/a*b", paths, []string{"/a*b"}, []string{"/a%2Ab", "/a%2ab"}, []string{"/axb"}},
		{"paths", "/a(1)*", paths, []string{"/a(1)/x"}, []string{"/a%281%29x"}, []string{"/a1"}},
		{"paths", "/a/{*}/b", paths, []string{"/a/x/b"}, []string{"/a/[x]/b"}, []string{"/a/b", "/a/x/y/b"}},
		{"paths", "/a/{**}/b", paths, []string{"/a/x/b", "/a/x/y/b"}, []string{"/a/b", "/a/[/b"}, []string{"/ab"}},
	} {
		deny := good(t, withValue("DENY", c.field, c.value, false))
		allow := good(t, withValue("ALLOW", c.field, c.value, false))
		for _, v := range c.admits {
			if !Evaluate(allow, c.request(v)).Allowed || Evaluate(deny, c.request(v)).Allowed {
				t.Errorf("%s %s, %q: ALLOW and DENY are not as they should be", c.field, c.value, v)
			}
		}
		for _, v := range c.denies {
			if Evaluate(allow, c.request(v)).Allowed || Evaluate(deny, c.request(v)).Allowed {
				t.Errorf("%s %s, %q: ALLOW and DENY are not as they should be", c.field, c.value, v)
			}
		}
		for _, v := range c.neither {
			if Evaluate(allow, c.request(v)).Allowed {
				t.Errorf("%s %s: ALLOW admits %q", c.field, c.value, v)
			}
		}
		// A negation turns it around: what notHosts of an ALLOW names is denied.
		not := good(t, withValue("ALLOW", c.field, c.value, true))
		for _, v := range append(c.admits, c.denies...) {
			if Evaluate(not, c.request(v)).Allowed {
				t.Errorf("ALLOW not %s %s admits %q", c.field, c.value, v)
			}
		}
		not = good(t, withValue("DENY", c.field, c.value, true))
		for _, v := range append(c.denies, c.neither...) {
			if Evaluate(not, c.request(v)).Allowed {
				t.Errorf("DENY not %s %s admits %q", c.field, c.value, v)
			}
		}
	}
}

func TestMethodsInOtherSpellingsAreDeniedWhereARuleLooksAtMethods(t *testing.T) {
	for _, spec := range []string{
		withValue("DENY", "methods", "DELETE", false), withValue("ALLOW", "methods", "DELETE", true), withValue("DENY", "methods", "GET", true)} {
		for _, method := range []string{"delete", "Delete", "get", "G*T"} {
			if d := Evaluate(good(t, spec), request("a", method, "/")); d.Allowed || d.Policy != AmbiguousMethodRule {
				t.Errorf("%s, %s: %+v", spec, method, d)
			}
		}
	}
	if d := Evaluate(good(t, `{"rules":[{}]}`), request("a", "delete", "/")); !d.Allowed {
		t.Errorf("no rule looks at methods, and it is denied: %+v", d)
	}
	// What is only tried out or only audited decides nothing.
	p := good(t, withValue("AUDIT", "methods", "DELETE", false))
	if d := Evaluate(p, request("a", "delete", "/")); !d.Allowed || !slices.Contains(d.Audited, AmbiguousMethodRule) {
		t.Errorf("audited: %+v", d)
	}
	p = good(t, withValue("DENY", "methods", "DELETE", false))
	p[0].DryRun = true
	if d := Evaluate(p, request("a", "delete", "/")); !d.Allowed {
		t.Errorf("tried out: %+v", d)
	}
}

// What normalisation yields, and nothing denied as ambiguous, is what a policy may say.
func TestNormalFormIsItsOwnNormalForm(t *testing.T) {
	for i := range 256 {
		for _, form := range []string{"/a%cb", "/a%%%02xb", "/%%%02X"} {
			path := fmt.Sprintf(form, i)
			if form == "/a%cb" {
				path = "/a" + string([]byte{byte(i)}) + "b"
			}
			normal, ok := NormalizePath(path)
			if !ok || IsAmbiguous(normal) {
				continue
			}
			if again, ok := NormalizePath(normal); !ok || again != normal {
				t.Errorf("%q is normalised to %q, and that to %q", path, normal, again)
			}
			if reason := notNormal(Exact, normal); reason != "" {
				t.Errorf("%q is normalised to %q, which a policy may not say: %s", path, normal, reason)
			}
			for _, wide := range []bool{false, true} {
				text, _ := pathText(normal, wide)
				if !regexp.MustCompile("^(?:" + text + ")$").MatchString(normal) {
					t.Errorf("%q does not match itself as %s", normal, text)
				}
			}
		}
	}
}

func TestTrustDomainAliases(t *testing.T) {
	opts := Options{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example"}, RootNamespace: "bulwark-system"}
	peer := func(td string) spiffe.ID { return spiffe.ID{TrustDomain: td, Namespace: "shop", ServiceAccount: "web"} }
	for _, c := range []struct {
		field, value string
		matches      []string // trust domains whose shop/web it matches
	}{
		{"principals", "new.example/ns/shop/sa/web", []string{"new.example", "old.example"}},
		{"principals", "old.example/ns/shop/sa/web", []string{"new.example", "old.example"}},
		{"principals", "cluster.local/ns/shop/sa/web", []string{"new.example", "old.example"}},
		{"principals", "cluster.local/ns/shop/*", []string{"new.example", "old.example"}},
		{"principals", "*.example/ns/shop/sa/web", []string{"new.example", "old.example"}},
		{"principals", "*/ns/shop/sa/web", []string{"new.example", "old.example"}},
		{"principals", "*", []string{"new.example", "old.example"}},
		{"principals", "other.example/ns/shop/sa/web", nil},
		{"namespaces", "shop", []string{"new.example", "old.example"}},
		{"serviceAccounts", "shop/web", []string{"new.example", "old.example"}},
		{"trustDomains", "new.example", []string{"new.example", "old.example"}},
		{"trustDomains", "old*", []string{"old.example"}},
		{"trustDomains", "other", nil},
	} {
		b := &builder{opts: opts, meta: Meta{Namespace: "shop"}, action: Allow}
		attr := map[string]Attribute{"principals": Principal, "namespaces": Namespace, "serviceAccounts": ServiceAccount, "trustDomains": TrustDomain}[c.field]
		matches, ok := b.match(attr, "", false, c.field, c.value)
		if !ok {
			t.Fatalf("%s %s: %v", c.field, c.value, b.problems)
		}
		clause := Clause{Attribute: attr, Values: matches}
		for _, td := range []string{"new.example", "old.example", "cluster.local", "elsewhere.example"} {
			want := slices.Contains(c.matches, td)
			if got := clause.predicate()(seenOf(Request{Source: peer(td)})); got != want {
				t.Errorf("%s %s matches %s: %v, want %v", c.field, c.value, td, got, want)
			}
		}
	}
}

// What follows CONNECT is no request that a rule could look at, whatever a rule looks at in requests.
func TestTunnelsAreDeniedWhereARuleLooksAtRequests(t *testing.T) {
	tunnel := request("a", "CONNECT", "")
	tunnel.Host = "other:443"
	for _, at := range []string{"hosts", "methods", "paths"} {
		value := map[string]string{"hosts": "*", "methods": "CONNECT", "paths": "/a"}[at]
		for _, spec := range []string{withValue("ALLOW", at, value, false), withValue("DENY", at, value, false), withValue("ALLOW", at, value, true)} {
			if d := Evaluate(good(t, spec, `{"rules":[{}]}`), tunnel); d.Allowed || d.Policy != TunnelRule {
				t.Errorf("%s: %+v", spec, d)
			}
		}
		if d := Evaluate(good(t, withValue("AUDIT", at, value, false)), tunnel); !d.Allowed || !slices.Contains(d.Audited, TunnelRule) {
			t.Errorf("%s, audited: %+v", at, d)
		}
	}
	if d := Evaluate(good(t, `{"rules":[{"when":[{"key":"request.headers[x-a]","values":["b"]}]}]}`), tunnel); d.Allowed || d.Policy != TunnelRule {
		t.Errorf("a rule about a header: %+v", d)
	}
	// Whoever may connect may say anything.
	for _, spec := range []string{`{"rules":[{}]}`, `{"rules":[{"from":[{"source":{"namespaces":["*"]}}]}]}`, `{"rules":[{"to":[{"operation":{"notPorts":["1"]}}]}]}`} {
		if d := Evaluate(good(t, spec), tunnel); !d.Allowed {
			t.Errorf("%s: %+v", spec, d)
		}
	}
}

// What is clear must be nothing that the expressions after it find.
func TestClearTextsAreNotAmbiguous(t *testing.T) {
	const alphabet = "/;%2357cCeE0fGT.\\|\xc3?"
	length := 4
	if Share > 1 {
		length = 3
	}
	for _, a := range Ambiguities {
		if a.Exact != "" { // nothing is asked before
			continue
		}
		found, clear := 0, regexp.MustCompile("^(?:"+a.Clear+")$")
		for text := range textsOf(alphabet, length) {
			bare, _, _ := strings.Cut(string(text), "?")
			if got := a.isClear(string(text)); got != clear.Match(text) {
				t.Fatalf("%s: %q is clear: %v, and the other way round by its expression", a.Rule, text, got)
			}
			if !a.expressed(bare) { // Finds would not ask of a clear one
				continue
			}
			found++
			if clear.Match(text) {
				t.Fatalf("%s: %q is ambiguous, and is taken for clear before the expressions are asked", a.Rule, text)
			}
		}
		if found < 1000 {
			t.Errorf("%s: %d texts are ambiguous, too few to tell", a.Rule, found)
		}
	}
	for text, want := range map[string]bool{"/": true, "/a/b.c/": true, "/a?x=%2F//..": true, "/a~b/@x": true, "": true, "/.a": false, "/a//b": false, "/a%20b": false} {
		if got := regexp.MustCompile("^(?:" + clearPath + ")$").MatchString(text); got != want {
			t.Errorf("%q is clear: %v", text, got)
		}
	}
}

// A path that normalisation would change is ambiguous, and so denied where a rule looks at paths and the workload does not ask for normalisation.
func TestWhatNormalisationWouldChangeIsAmbiguous(t *testing.T) {
	const alphabet = "/%2fFc5e.;a?\\|\xc3\xa9 ~"
	for text := range textsOf(alphabet, 4) {
		path := "/" + string(text)
		normal, ok := NormalizePath(path)
		sent, readable := SeenPath(Request{Path: path})
		if readable && (!ok || normal != sent) && !IsAmbiguous(sent) {
			t.Fatalf("%q goes on as it is and would be %q when it is normalised", path, normal)
		}
	}
}

// textsOf are all texts of an alphabet up to a length. Each is good until the next.
func textsOf(alphabet string, most int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		count := 1 // of a length
		for length := range most + 1 {
			text := make([]byte, length)
			for n := range count {
				for i := range text {
					text[i] = alphabet[n%len(alphabet)]
					n /= len(alphabet)
				}
				if !yield(text) {
					return
				}
			}
			count *= len(alphabet)
		}
	}
}
