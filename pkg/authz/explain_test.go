package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// generator makes policies and requests of a small vocabulary, so that they meet.
type generator struct{ *rand.Rand }

func random(t *testing.T) *generator {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return &generator{rand.New(rand.NewPCG(seed, 1))}
}

var words = map[string][]string{
	"principals": {"cluster.local/ns/finance/sa/a", "cluster.local/ns/finance/sa/b", "cluster.local/ns/shop/*", "*", "*/sa/a"},
	"namespaces": {"finance", "shop", "fin*", "*"},
	"accounts":   {"a", "shop/a", "finance/b"},
	"ips":        {"10.0.0.0/8", "10.0.0.9", "::/0", "192.168.0.0/16"},
	"hosts":      {"payroll", "*.finance", "pay*"},
	"methods":    {"GET", "P*", "DELETE", "*"},
	"paths":      {"/a", "/a/*", "*/x", "/a/{*}", "/b/{**}/x", "/", "*", "/a,b"},
	"headers":    {"good", "ba*", "*d"},
	"ports":      {"8080", "9000"},
}

func (g *generator) some(of string) (out []string) {
	for g.IntN(3) == 0 {
		out = append(out, g.of(words[of]))
	}
	return out
}

func (g *generator) of(list []string) string { return list[g.IntN(len(list))] }

func (g *generator) spec() *security.AuthorizationPolicy {
	spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 0, 1, 2}[g.IntN(4)]}
	for range 1 + g.IntN(3) {
		r := &security.Rule{}
		for range g.IntN(3) {
			s := &security.Source{IpBlocks: g.some("ips")}
			if g.IntN(4) == 0 {
				s.ServiceAccounts = g.some("accounts")
			} else {
				s.Principals, s.NotPrincipals, s.Namespaces = g.some("principals"), g.some("principals"), g.some("namespaces")
			}
			if len(s.GetIpBlocks())+len(s.GetServiceAccounts())+len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces()) > 0 {
				r.From = append(r.From, &security.Rule_From{Source: s})
			}
		}
		for range g.IntN(3) {
			o := &security.Operation{Hosts: g.some("hosts"), Methods: g.some("methods"), NotMethods: g.some("methods"), Paths: g.some("paths"), NotPaths: g.some("paths"), Ports: g.some("ports")}
			if len(o.GetHosts())+len(o.GetMethods())+len(o.GetNotMethods())+len(o.GetPaths())+len(o.GetNotPaths())+len(o.GetPorts()) > 0 {
				r.To = append(r.To, &security.Rule_To{Operation: o})
			}
		}
		if values := g.some("headers"); len(values) > 0 {
			r.When = append(r.When, &security.Condition{Key: "request.headers[x-test]", Values: values})
		}
		spec.Rules = append(spec.Rules, r)
	}
	return spec
}

func (g *generator) specs() (out []Spec) {
	for i := range 1 + g.IntN(4) {
		out = append(out, Spec{Meta{Namespace: "finance", Name: fmt.Sprint("p", i), DryRun: g.IntN(8) == 0}, g.spec()})
	}
	return out
}

func (g *generator) request() Request {
	req := Request{HTTP: g.IntN(5) > 0, DestinationPort: []uint32{8080, 9000, 1}[g.IntN(3)], SourceIP: netip.MustParseAddr(g.of([]string{"10.0.0.9", "10.1.1.1", "192.168.0.1", "fd00::1"}))}
	if g.IntN(4) > 0 {
		req.Source = spiffe.ID{TrustDomain: "cluster.local", Namespace: g.of([]string{"finance", "shop"}), ServiceAccount: g.of([]string{"a", "b"})}
	}
	if req.HTTP {
		req.Method, req.Host = g.of([]string{"GET", "POST", "PUT", "DELETE", "get"}), g.of([]string{"payroll", "x.finance", "Payroll:80"})
		req.Path = g.of([]string{"/a", "/a/x", "/a/b?c", "/b/c/x", "/", "/a,b", "/a/;x"})
		req.Headers = map[string][]string{"x-test": [][]string{nil, {"good"}, {"bad", "x"}}[g.IntN(3)]}
	}
	return req
}

func compiled(t *testing.T, specs []Spec) (out []Policy) {
	t.Helper()
	for _, s := range specs {
		p, problems := FromAuthorizationPolicy(s.Meta, s.AuthorizationPolicy, options)
		if len(problems) > 0 {
			t.Fatalf("%v: %v", s, problems)
		}
		out = append(out, p)
	}
	return out
}

// decided is what the outcomes of rules amount to: the first that denies, else the first that allows.
func decided(e Explanation) string {
	for _, action := range []Action{Deny, Allow} {
		for _, p := range e.Policies {
			for _, r := range p.Rules {
				if p.Action == action && !p.DryRun && r.Matches && r.Skipped == "" {
					return r.ID
				}
			}
		}
	}
	return ""
}

func TestExplanationAgreesWithTheDecision(t *testing.T) {
	g, by := random(t), map[string]int{}
	for range 300 {
		policies, req := compiled(t, g.specs()), Request{}
		for range 10 {
			req = g.request()
			e, d := Explain(policies, req), Evaluate(policies, req)
			if e.Allowed != d.Allowed || e.Policy != d.Policy || e.Reason != d.Reason {
				t.Fatalf("explained %+v, decided %+v", e.Decision, d)
			}
			_, _, rule := RuleOf(policies, d.Policy)
			if got := decided(e); got != d.Policy && (rule || d.Policy == "") {
				t.Fatalf("the rules that match say %q, the decision %q\n%+v\n%+v", got, d.Policy, req, e)
			}
			by[fmt.Sprint(d.Allowed, rule)]++
			for _, p := range e.Policies {
				for _, r := range p.Rules {
					if r.Matches != (len(r.Missed) == 0 && r.Skipped == "") {
						t.Fatalf("a rule matches or misses a clause: %+v", r)
					}
				}
			}
		}
	}
	for _, kind := range []string{"true true", "false true", "false false"} {
		if by[kind] < 100 {
			t.Errorf("only %d decisions are %s: %v", by[kind], kind, by)
		}
	}
}

func TestChangeAdmitsExactlyTheRequest(t *testing.T) {
	g, admitted := random(t), 0
	for range 400 {
		specs, req := g.specs(), g.request()
		policies := compiled(t, specs)
		if Evaluate(policies, req).Allowed {
			continue
		}
		name := Meta{Namespace: "finance", Name: "new"}
		changed, err := Admit(policies, specs, req, name, map[string]string{"app": "payroll"}, options)
		if err != nil {
			if path, _ := seenPath(req); !IsAmbiguous(path) && req.Method != "get" {
				t.Fatalf("no change for %+v: %v", req, err)
			}
			continue
		}
		after := slices.Clone(specs)
		for _, c := range changed {
			if i := slices.IndexFunc(after, func(s Spec) bool { return same(s.Meta, c.Meta) }); i >= 0 {
				after[i] = c
			} else {
				after = append(after, c)
			}
		}
		then := compiled(t, after)
		if d := Evaluate(then, req); !d.Allowed {
			t.Fatalf("%+v is not admitted: %+v\n%v\nchanged %v", req, d, specs, changed)
		}
		admitted++
		for range 50 {
			other := g.request()
			seen, _ := seenPath(req)
			if path, _ := seenPath(other); other.Source == req.Source && other.DestinationPort == req.DestinationPort && other.HTTP == req.HTTP && other.Method == req.Method && path == seen &&
				(req.HTTP || other.DestinationPort == req.DestinationPort) {
				continue
			}
			if other.HTTP != req.HTTP && other.DestinationPort == req.DestinationPort {
				continue // a port speaks one of them
			}
			was, is := Evaluate(policies, other), Evaluate(then, other)
			if was.Allowed != is.Allowed && is.Policy != AmbiguousPathRule && is.Policy != AmbiguousMethodRule {
				t.Fatalf("%+v was allowed %v by %q, and is %v by %q, though the change is for %+v\n%v\nchanged %v", other, was.Allowed, was.Policy, is.Allowed, is.Policy, req, specs, changed)
			}
		}
	}
	if admitted < 80 {
		t.Errorf("only %d requests were admitted by a change", admitted)
	}
}

func TestNearestAlternativeSaysWhatIsMissing(t *testing.T) {
	policies := good(t, `{"rules":[{"from":[{"source":{"principals":["*/sa/other"]}},{"source":{"principals":["cluster.local/ns/finance/sa/auditor"]}}],"to":[{"operation":{"methods":["GET"],"paths":["/accounts/*"]}}],
		"when":[{"key":"request.headers[x-role]","values":["auditor"],"notValues":["gu*"]}]}]}`)
	req := request("auditor", "POST", "/accounts/1")
	req.Headers = map[string][]string{"x-role": {"auditor", "guest"}}
	r := Explain(policies, req).Policies[0].Rules[0]
	want := []Missed{
		{Field: "spec.rules[0].to[0].operation.methods", Asked: []string{"GET"}, Had: []string{"POST"}},
		{Field: "spec.rules[0].when[0].notValues", Not: true, Asked: []string{"gu*"}, Had: []string{"auditor", "guest"}},
	}
	if r.Matches || r.Held != 2 || fmt.Sprint(r.Missed) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", r, want)
	}
}
