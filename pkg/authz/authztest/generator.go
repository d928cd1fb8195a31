// Package authztest makes random policies and requests, for tests that compare what is said of them in two ways.
package authztest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Options are of the mesh that the policies are of.
var Options = authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system", Authorizers: []authorizer.Provider{{Name: "one"}, {Name: "two"}}}

// Generator makes policies and requests of a small vocabulary, so that they meet.
type Generator struct{ *rand.Rand }

// New makes a generator, whose seed the test's log has.
func New(t *testing.T) *Generator {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return &Generator{rand.New(rand.NewPCG(seed, 1))}
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
	"tokens":     {"https://a/b", "https://a/*", "*", "*/b", "http*", "*b", "spiffe://a/spiffe://a/ns/b/sa/c", "spiffe://a/*", "*/spiffe://a/ns/b/sa/c", "spiffe://a/spiffe://a/ns/b/*"},
	"claims":     {"x", "y*", "*", "1", "true"},
}

func (g *Generator) some(of string) (out []string) {
	for g.IntN(3) == 0 {
		out = append(out, g.of(words[of]))
	}
	return out
}

func (g *Generator) of(list []string) string { return list[g.IntN(len(list))] }

// spec is a policy, which may have an authorizer asked if it may be asked.
func (g *Generator) spec(mayAsk bool) *security.AuthorizationPolicy {
	spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 0, 1, 2}[g.IntN(4)]}
	tokens := !mayAsk || g.IntN(5) > 0
	if !tokens {
		spec.Action, spec.ActionDetail = security.AuthorizationPolicy_CUSTOM, &security.AuthorizationPolicy_Provider{Provider: &security.AuthorizationPolicy_ExtensionProvider{Name: g.of([]string{"one", "two"})}}
	}
	for range 1 + g.IntN(3) {
		r := &security.Rule{}
		for range g.IntN(3) {
			s := &security.Source{IpBlocks: g.some("ips")}
			if g.IntN(4) == 0 {
				s.ServiceAccounts = g.some("accounts")
			} else {
				s.Principals, s.NotPrincipals, s.Namespaces = g.some("principals"), g.some("principals"), g.some("namespaces")
			}
			if tokens && g.IntN(4) == 0 {
				s.RequestPrincipals, s.NotRequestPrincipals = g.some("tokens"), g.some("tokens")
			}
			if len(s.GetIpBlocks())+len(s.GetServiceAccounts())+len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+
				len(s.GetRequestPrincipals())+len(s.GetNotRequestPrincipals()) > 0 {
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
		if values := g.some("claims"); tokens && len(values) > 0 && g.IntN(2) == 0 {
			r.When = append(r.When, &security.Condition{Key: "request.auth.claims[groups]", NotValues: values})
		}
		spec.Rules = append(spec.Rules, r)
	}
	return spec
}

// Specs are a few policies of a namespace.
func (g *Generator) Specs() (out []authz.Spec) {
	for i := range 1 + g.IntN(4) {
		meta := authz.Meta{Namespace: "finance", Name: fmt.Sprint("p", i), DryRun: g.IntN(8) == 0}
		out = append(out, authz.Spec{Meta: meta, AuthorizationPolicy: g.spec(!meta.DryRun)})
	}
	return out
}

// Request is a request, or a connection.
func (g *Generator) Request() authz.Request {
	req := authz.Request{HTTP: g.IntN(5) > 0, DestinationPort: []uint32{8080, 9000, 1}[g.IntN(3)], SourceIP: netip.MustParseAddr(g.of([]string{"10.0.0.9", "10.1.1.1", "192.168.0.1", "fd00::1"}))}
	if g.IntN(4) > 0 {
		req.Source = spiffe.ID{TrustDomain: "cluster.local", Namespace: g.of([]string{"finance", "shop"}), ServiceAccount: g.of([]string{"a", "b"})}
	}
	if req.HTTP {
		req.Method, req.Host = g.of([]string{"GET", "POST", "PUT", "DELETE", "get"}), g.of([]string{"payroll", "x.finance", "Payroll:80"})
		req.Path = g.of([]string{"/a", "/a/x", "/a/b?c", "/b/c/x", "/", "/a,b", "/a/;x"})
		if g.IntN(3) > 0 {
			req.Claims = map[string]any{"iss": g.of([]string{"https://a", "http:b", "spiffe://a"}), "sub": g.of([]string{"b", "c", "spiffe://a/ns/b/sa/c"})}
			req.Claims["groups"] = []any{nil, "x", "yes", []any{"x", "yes"}, true, 1.0, map[string]any{"a": "x"}}[g.IntN(7)]
		}
		req.Headers = map[string][]string{"x-test": [][]string{nil, {"good"}, {"bad", "x"}, {"good", "bad"}}[g.IntN(4)]}
	}
	return req
}

// Compiled are policies in the form that decides.
func Compiled(t *testing.T, specs []authz.Spec) (out []authz.Policy) {
	t.Helper()
	for _, s := range specs {
		p, problems := authz.FromAuthorizationPolicy(s.Meta, s.AuthorizationPolicy, Options)
		if len(problems) > 0 {
			t.Fatalf("%v: %v", s, problems)
		}
		out = append(out, p)
	}
	return out
}
