package authz

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var options = Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}

// Share is which part of their rounds random tests make: one in so many.
var Share = 1

func policy(t testing.TB, spec string) (Policy, []Problem) {
	t.Helper()
	var s security.AuthorizationPolicy
	if err := protojson.Unmarshal([]byte(spec), &s); err != nil {
		t.Fatal(err)
	}
	return FromAuthorizationPolicy(Meta{Namespace: "finance", Name: "p"}, &s, options)
}

func good(t testing.TB, specs ...string) []Policy {
	t.Helper()
	var out []Policy
	for _, s := range specs {
		p, problems := policy(t, s)
		if len(problems) > 0 {
			t.Fatalf("%s: %v", s, problems)
		}
		out = append(out, p)
	}
	return out
}

func request(account, method, path string) Request {
	r := Request{HTTP: true, Method: method, Path: path, Host: "payroll", DestinationPort: 8080, SourceIP: netip.MustParseAddr("10.0.0.9")}
	if account != "" {
		r.Source = spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: account}
	}
	return r
}

func normalized(r Request) Request {
	r.NormalizesPaths = true
	return r
}

const auditor = `{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/finance/sa/account-auditor"]}}],"to":[{"operation":{"methods":["GET"],"paths":["/accounts/*"]}}]}]}`

func TestEvaluate(t *testing.T) {
	for _, c := range []struct {
		name     string
		policies []string
		req      Request
		allowed  bool
		policy   string
	}{
		{"nothing in scope", nil, request("a", "GET", "/"), true, ""},
		{"auditor reads accounts", []string{auditor}, request("account-auditor", "GET", "/accounts/1"), true, "ns[finance]-policy[p]-rule[0]"},
		{"auditor writes", []string{auditor}, request("account-auditor", "POST", "/accounts/1"), false, ""},
		{"auditor elsewhere", []string{auditor}, request("account-auditor", "GET", "/salaries"), false, ""},
		{"auditor by dots", []string{auditor}, request("account-auditor", "GET", "/accounts/../salaries"), false, AmbiguousPathRule},
		{"auditor by dots, normalised", []string{auditor}, normalized(request("account-auditor", "GET", "/accounts/../salaries")), false, ""},
		{"auditor by other dots, normalised", []string{auditor}, normalized(request("account-auditor", "GET", "/x/..//accounts/%31")), true, "ns[finance]-policy[p]-rule[0]"},
		{"a path that no rule looks at", []string{`{"rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}`}, request("a", "GET", "//group%2Fproject;a/.."), true, "ns[finance]-policy[p]-rule[0]"},
		{"another", []string{auditor}, request("web", "GET", "/accounts/1"), false, ""},
		{"no certificate", []string{auditor}, request("", "GET", "/accounts/1"), false, ""},
		{"empty spec allows nothing", []string{`{}`}, request("a", "GET", "/"), false, ""},
		{"empty rule allows all", []string{`{"rules":[{}]}`}, request("", "GET", "/"), true, "ns[finance]-policy[p]-rule[0]"},
		{"deny outweighs", []string{`{"rules":[{}]}`, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"]}}]}]}`}, request("a", "GET", "/admin"), false, "ns[finance]-policy[p]-rule[0]"},
		{"deny outweighs, escaped", []string{`{"rules":[{}]}`, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"]}}]}]}`}, request("a", "GET", "/%61dmin"), false, AmbiguousPathRule},
		{"deny outweighs, normalised", []string{`{"rules":[{}]}`, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"]}}]}]}`}, normalized(request("a", "GET", "/%61dmin")), false, "ns[finance]-policy[p]-rule[0]"},
		{"ambiguous path", []string{auditor}, request("account-auditor", "GET", "/accounts/1;a=b"), false, AmbiguousPathRule},
		{"audit decides nothing", []string{`{"action":"AUDIT","rules":[{}]}`}, request("a", "GET", "/"), true, ""},
		{"notPrincipals without certificate", []string{`{"action":"DENY","rules":[{"from":[{"source":{"notPrincipals":["*"]}}]}]}`}, request("", "GET", "/"), false, "ns[finance]-policy[p]-rule[0]"},
		{"dot is no wildcard", []string{`{"rules":[{"from":[{"source":{"serviceAccounts":["a.b"]}}]}]}`}, request("axb", "GET", "/"), false, ""},
		{"host in other spellings", []string{`{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["PAYROLL"]}}]}]}`}, Request{HTTP: true, Host: "payroll.:80", Method: "GET", Path: "/"}, false, "ns[finance]-policy[p]-rule[0]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Evaluate(good(t, c.policies...), c.req)
			if d.Allowed != c.allowed || d.Policy != c.policy {
				t.Fatalf("got %+v, want allowed %v by %q", d, c.allowed, c.policy)
			}
		})
	}
}

func TestOnConnectionsDenyGetsWiderAndAllowIsSkipped(t *testing.T) {
	tcp := Request{DestinationPort: 9000}
	if d := Evaluate(good(t, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"],"ports":["9000"]}}]}]}`), tcp); d.Allowed {
		t.Error("a DENY rule with a path let a connection to its port through")
	}
	if d := Evaluate(good(t, `{"rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}`), tcp); d.Allowed {
		t.Error("an ALLOW rule with a method let a connection through")
	}
}

func TestWhatCannotBeEnforcedIsNamedAndFailsClosed(t *testing.T) {
	for _, c := range []struct{ spec, field string }{
		{`{"action":"CUSTOM","rules":[{}]}`, "spec.provider.name"},
		{`{"action":"CUSTOM","provider":{"name":"x"}}`, "spec.rules"},
		{`{"action":"CUSTOM","provider":{"name":"x"},"rules":[{"from":[{"source":{"requestPrincipals":["*"]}}]}]}`, "spec.rules[0].from[0].source.requestPrincipals"},
		{`{"action":"CUSTOM","provider":{"name":"x"},"rules":[{"when":[{"key":"request.auth.claims[a]","values":["b"]}]}]}`, "spec.rules[0].when[0].values"},
		{`{"rules":[{"from":[{"source":{"requestPrincipals":["nobody"]}}]}]}`, "spec.rules[0].from[0].source.requestPrincipals[0]"},
		{`{"action":"DENY","rules":[{"from":[{"source":{"notRequestPrincipals":["https://issuer.example*"]}}]}]}`, "spec.rules[0].from[0].source.notRequestPrincipals[0]"},
		{`{"rules":[{"from":[{"source":{"remoteIpBlocks":["10.0.0.0/99"]}}]}]}`, "spec.rules[0].from[0].source.remoteIpBlocks[0]"},
		{`{"action":"DENY","rules":[{"when":[{"key":"request.auth.claims","values":["b"]}]}]}`, "spec.rules[0].when[0].key"},
		{`{"action":"DENY","rules":[{"when":[{"key":"request.auth.claims[a][]","values":["b"]}]}]}`, "spec.rules[0].when[0].key"},
		{`{"action":"DENY","rules":[{"when":[{"key":"request.auth.issuer","values":["b"]}]}]}`, "spec.rules[0].when[0].key"},
		{`{"rules":[{"when":[{"key":"nonsense","values":["b"]}]}]}`, "spec.rules[0].when[0].key"},
		{`{"action":"DENY","rules":[{"from":[{"source":{"ipBlocks":["10.0.0.0/33"]}}]}]}`, "spec.rules[0].from[0].source.ipBlocks[0]"},
		{`{"rules":[{"to":[{"operation":{"notPorts":["http"]}}]}]}`, "spec.rules[0].to[0].operation.notPorts[0]"},
		{`{"rules":[{"to":[{"operation":{"paths":["/a/{**}/{*}"]}}]}]}`, "spec.rules[0].to[0].operation.paths[0]"},
		{`{"action":"DENY"}`, "spec.rules"},
		{`{"rules":[{"from":[{"source":{"principals":["` + strings.Repeat("a", MaxValueLength+1) + `"]}}]}]}`, "spec.rules[0].from[0].source.principals[0]"},
	} {
		p, problems := policy(t, c.spec)
		if len(problems) == 0 || problems[0].Field != c.field {
			t.Errorf("%.120s: problems %v, want one with %s", c.spec, problems, c.field)
		}
		if c.spec == `{"action":"DENY"}` { // matches nothing, as written
			continue
		}
		if d := Evaluate([]Policy{p}, request("a", "GET", "/x")); d.Allowed {
			t.Errorf("%.120s: fails open", c.spec)
		}
	}
}

func TestSelectorThatCanNeverMatchSelectsNothingAndIsNamed(t *testing.T) {
	for _, labels := range []string{`{"app":"a*"}`, `{"":"a"}`, `{"a b":"c"}`, `{"app":"a b"}`, `{"app":"` + strings.Repeat("a", 64) + `"}`} {
		p, problems := policy(t, `{"selector":{"matchLabels":`+labels+`}}`)
		if len(problems) != 1 || problems[0].Field != "spec.selector.matchLabels" || !p.Ignored {
			t.Errorf("%s: %v, ignored %v", labels, problems, p.Ignored)
		}
		var spec security.PeerAuthentication
		if err := protojson.Unmarshal([]byte(`{"selector":{"matchLabels":`+labels+`}}`), &spec); err != nil {
			t.Fatal(err)
		}
		peer, problems := FromPeerAuthentication(Meta{Namespace: "finance", Name: "p"}, &spec, options)
		if len(problems) != 1 || problems[0].Field != "spec.selector.matchLabels" || !peer.Ignored {
			t.Errorf("PeerAuthentication %s: %v, ignored %v", labels, problems, peer.Ignored)
		}
	}
}

func TestScope(t *testing.T) {
	labels := map[string]string{"app": "x"}
	for _, c := range []struct {
		p    Policy
		want bool
	}{
		{Policy{Meta: Meta{Namespace: "a"}}, true},
		{Policy{Meta: Meta{Namespace: "b"}}, false},
		{Policy{Meta: Meta{Namespace: "root"}, Selector: labels}, true},
		{Policy{Meta: Meta{Namespace: "a"}, Selector: map[string]string{"app": "y"}}, false},
		{Policy{Meta: Meta{Namespace: "a"}, Ignored: true}, false},
	} {
		if got := c.p.InScope("root", "a", labels); got != c.want {
			t.Errorf("%+v: in scope %v", c.p, got)
		}
	}
}

func TestPeerModeNarrowestThenOldestHolds(t *testing.T) {
	at := func(day int) time.Time { return time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC) }
	selector := map[string]string{"app": "x"}
	policies := []PeerPolicy{
		{Meta: Meta{Namespace: "root", Name: "mesh", Created: at(1)}, Mode: Strict},
		{Meta: Meta{Namespace: "root", Name: "selected", Created: at(1)}, Mode: Disable, Selector: selector}, // has no effect
		{Meta: Meta{Namespace: "a", Name: "young", Created: at(3)}, Mode: Disable},
		{Meta: Meta{Namespace: "a", Name: "old", Created: at(2)}, Mode: Permissive},
		{Meta: Meta{Namespace: "a", Name: "workload", Created: at(2)}, Selector: selector, Ports: map[uint32]TLSMode{9000: Disable}},
		{Meta: Meta{Namespace: "b", Name: "unset", Created: at(2)}},
	}
	got := ComposePeer(policies, "root", "a", selector)
	if got.Mode(80) != Permissive || got.Mode(9000) != Disable {
		t.Errorf("got %+v", got)
	}
	if got.By(80).Name != "old" || got.By(9000).Name != "workload" {
		t.Errorf("said to be by %s, and by %s", got.By(80).Name, got.By(9000).Name)
	}
	if got := ComposePeer(policies, "root", "b", nil); got.By(80).Name != "mesh" {
		t.Errorf("what inherits is said to be by %+v", got.By(80))
	}
	if got := ComposePeer([]PeerPolicy{{Meta: Meta{Namespace: "a", Name: "x"}, Selector: selector, Mode: Strict, Ignored: true}}, "root", "a", selector); got.Mode(80) != Permissive || got.By(80) != nil {
		t.Errorf("what holds for none holds: %+v", got)
	}
	if got := ComposePeer(policies, "root", "b", selector); got.Mode(80) != Strict {
		t.Errorf("UNSET does not inherit: %+v", got)
	}
	if got := ComposePeer(nil, "root", "a", selector); got.Mode(80) != Permissive {
		t.Errorf("a mesh without policies: %+v", got)
	}
}

func FuzzFromAuthorizationPolicy(f *testing.F) {
	f.Add([]byte(auditor))
	f.Add([]byte(`{"action":"DENY","rules":[{"when":[{"key":"request.headers[x]","notValues":["*"]}]}, null]}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		var s security.AuthorizationPolicy
		if protojson.Unmarshal(spec, &s) != nil {
			return
		}
		p, _ := FromAuthorizationPolicy(Meta{Namespace: "a", Name: "b"}, &s, options)
		Evaluate([]Policy{p, p.TCP()}, request("a", "GET", "/x"))
	})
}
