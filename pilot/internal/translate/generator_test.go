package translate_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// generator makes policies and requests from a small vocabulary, so that they meet.
type generator struct {
	*rand.Rand
	normalizes bool     // the workload's proxies normalise paths
	specs      []string // of the policies, as they are written
}

var identities = []spiffe.ID{
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a.b"},
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "axb"},
	{TrustDomain: "cluster.local", Namespace: "finance-prod", ServiceAccount: "auditor"},
	{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "auditor"},
	{TrustDomain: "old.local", Namespace: "finance", ServiceAccount: "a.b"},
	{TrustDomain: "old.local", Namespace: "shop", ServiceAccount: "auditor"},
}

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}

// aliased is a mesh that had another trust domain once.
var aliased = compile.Settings{TrustDomain: settings.TrustDomain, RootNamespace: settings.RootNamespace, TrustDomainAliases: []string{"old.local"}, TrustedProxies: 1,
	LoadBalancers: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}}

var aliasedOptions = authz.Options{TrustDomain: aliased.TrustDomain, TrustDomainAliases: aliased.TrustDomainAliases, RootNamespace: aliased.RootNamespace, TrustedProxies: 1,
	Authorizers: []authorizer.Provider{{Name: "grpc"}, {Name: "http"}, {Name: "down"}, {Name: "open"}, {Name: "grpc-ns"}, {Name: "silent"}, {Name: "whole"}}}

var vocabulary = map[string][]string{
	"principals": {"cluster.local/ns/finance/sa/a.b", "cluster.local/ns/finance*", "*/sa/auditor", "*", "*auditor", "other.domain/ns/shop/sa/auditor",
		"old.local/ns/finance/sa/a.b", "old.local/*", "cluster.lo*", "*.local/ns/shop/sa/auditor", "cluster.local/ns/*/sa/auditor", "auditor"},
	"namespaces":      {"finance", "fin*", "*-prod", "*", "shop", "*p", "fin*ce"},
	"serviceAccounts": {"a.b", "auditor", "shop/auditor", "finance/axb", "shop/*"},
	"trustDomains":    {"cluster.local", "cluster*", "*.local", "*", "other", "old*", "old.local"},
	"requestPrincipals": {"*", "https://issuer.example/a/alice", "https://issuer.example/a/*", "*/alice", "*bob", "https://issuer.example/a/al*", "*a/alice", "https://issuer.example/b/alice", "no*",
		"https://issuer.example/a/spiffe://a/ns/b/sa/c", "*/spiffe://a/ns/b/sa/c", "https://issuer.example/a/spiffe://a/ns/*"},
	"claims":   {"reader", "*", "read*", "*er", "true", "false", "42", "4.2e1", "-7", "a b", "", "é"},
	"ipBlocks": {"127.0.0.0/8", "127.0.0.1", "10.0.0.0/8", "::/0", "0.0.0.0/0", "127.0.0.2/31", "127.0.1.0/26"},
	"hosts": {"payroll", "PAYROLL.finance", "*.finance", "pay*", "*", "payroll:8080", "payroll.finance:*", "*:80", "[::1]", "[::1]:80", "payroll.",
		"*.finance:80", "payroll.finance:8*", "[:*", "*]:80", "*1]", "http://payroll", "pay*ll"},
	"methods": {"GET", "P*", "*T", "*", "DELETE", "PUT", "delete", "GET, POST"},
	"paths": {"/admin", "/admin/*", "*/x", "*", "/a/{*}/c", "/a/{**}", "/{**}/c", "/", "/acc.ounts", "/a/{*}", "/a/{**}/c", "/a*c", "/a/@*", "*@me", "/@me",
		"/%40me", "/a%20b", "/%c3%A9*", "*%C3%a9", "/a[0]", "/a%5B0%5D", "*%2A", "/.*", "*..", "/a%25", "/group%2Fproject", "//x", "/%7Euser", "/é", "/a b", "/{*}"},
	"headers": {"bad", "ba*", "*ad", "*", "ok", "a.b", "ok,bad", "b*d", "é*"},
	"sni":     {"outbound_.80_._.payroll", "outbound*", "*payroll", "*", "Payroll"},
}

func (g *generator) pick(of string) []string {
	var out []string
	for range g.IntN(2) + g.IntN(2) + g.IntN(2) {
		out = append(out, vocabulary[of][g.IntN(len(vocabulary[of]))])
	}
	return out
}

func (g *generator) maybe() bool { return g.IntN(3) == 0 }

// ports are some of the workload's, or others.
func (g *generator) ports(ports []uint32) []string {
	if g.IntN(2) == 0 {
		return []string{fmt.Sprint(ports[g.IntN(len(ports))])}
	}
	return []string{"1", "2"}
}

// policies are of a workload that has ports.
func (g *generator) policies(ports ...uint32) []authz.Policy {
	var out []authz.Policy
	many := g.maybe()
	for i := range 1 + g.IntN(3) {
		spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 0, 0, 0, 1, 1, 2, 2, 3}[g.IntN(9)]}
		if spec.GetAction() == security.AuthorizationPolicy_CUSTOM {
			spec.ActionDetail = &security.AuthorizationPolicy_Provider{Provider: &security.AuthorizationPolicy_ExtensionProvider{Name: g.one("open", "open", "open", "nobody")}}
		}
		for range g.IntN(3) {
			spec.Rules = append(spec.Rules, g.rule(ports))
		}
		for range map[bool]int{true: 8 + g.IntN(8)}[many] {
			spec.Rules = append(spec.Rules, g.naming(ports))
		}
		text, err := protojson.Marshal(spec)
		if err != nil {
			panic(err) // of texts, which are UTF-8
		}
		p, _ := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(i), DryRun: g.IntN(6) == 0}, spec, aliasedOptions)
		out, g.specs = append(out, p), append(g.specs, fmt.Sprintf("%s, dry run %v: %s", p.Name, p.DryRun, text))
	}
	return out
}

func (g *generator) rule(ports []uint32) *security.Rule {
	r := &security.Rule{}
	for range g.IntN(3) {
		s := &security.Source{}
		if g.maybe() {
			s.Principals = g.pick("principals")
		}
		if g.maybe() {
			s.NotPrincipals = g.pick("principals")
		}
		if g.maybe() {
			s.Namespaces, s.NotNamespaces = g.pick("namespaces"), g.pick("namespaces")
		}
		if g.maybe() {
			s.IpBlocks = g.pick("ipBlocks")
		}
		if g.maybe() {
			s.RequestPrincipals, s.NotRequestPrincipals = g.pick("requestPrincipals"), g.pick("requestPrincipals")
		}
		if g.IntN(5) == 0 {
			s.RemoteIpBlocks, s.NotRemoteIpBlocks = g.pick("ipBlocks"), g.pick("ipBlocks")
		}
		if g.maybe() {
			s.TrustDomains = g.pick("trustDomains")
		}
		if len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) == 0 && g.maybe() {
			s.ServiceAccounts, s.NotServiceAccounts = g.pick("serviceAccounts"), g.pick("serviceAccounts")
		}
		r.From = append(r.From, &security.Rule_From{Source: s})
	}
	for range g.IntN(3) {
		o := &security.Operation{}
		if g.maybe() {
			o.Hosts, o.NotHosts = g.pick("hosts"), g.pick("hosts")
		}
		if g.maybe() {
			o.Methods, o.NotMethods = g.pick("methods"), g.pick("methods")
		}
		if g.maybe() {
			o.Paths, o.NotPaths = g.pick("paths"), g.pick("paths")
		}
		if g.maybe() {
			o.Ports = g.ports(ports)
		}
		r.To = append(r.To, &security.Rule_To{Operation: o})
	}
	for _, key := range []string{"request.headers[x-test]", "connection.sni", "source.namespace", "destination.port", "source.ip", "destination.ip", "remote.ip",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter", "request.auth.claims[role]", "request.auth.claims[realm][roles]", "request.auth.claims[scope]"} {
		if g.IntN(6) != 0 {
			continue
		}
		list := map[string]string{"request.headers[x-test]": "headers", "connection.sni": "sni", "source.namespace": "namespaces", "source.ip": "ipBlocks", "destination.ip": "ipBlocks", "remote.ip": "ipBlocks",
			"request.auth.principal": "requestPrincipals"}[key]
		if list == "" && strings.HasPrefix(key, "request.auth.") {
			list = "claims"
		}
		c := &security.Condition{Key: key}
		if list == "" {
			c.Values = g.ports(ports)
		} else {
			c.Values, c.NotValues = g.pick(list), g.pick(list)
		}
		r.When = append(r.When, c)
	}
	return r
}

// claims are those of a token, as rules see them.
func (g *generator) claims() claimSet {
	value := func() any {
		switch g.IntN(9) {
		case 0:
			return g.maybe()
		case 1:
			return []float64{42, -7, 4.2, 0, 1e300}[g.IntN(5)]
		case 2:
			return []any{}
		case 3:
			return []any{"reader", true, 42.0, claimSet{"x": "reader"}}[g.IntN(2):]
		case 4:
			return map[string]any{"roles": "reader"}
		case 5:
			return nil
		}
		return g.one("reader", "writer", "a b", "", "true", "42", "é", "er")
	}
	out := claimSet{"iss": "https://issuer.example/a", "sub": g.one("alice", "bob", "alice/x", "al", "spiffe://a/ns/b/sa/c"), "role": value(), "aud": g.one("reader", "me"), "azp": value(), "realm": value()}
	if g.maybe() {
		out["realm"] = map[string]any{"roles": value()}
	}
	if g.maybe() {
		out["scope"] = []any{"reader", "writer"}
	}
	return out
}

// forwarded writes, or does not, whom a request is forwarded for, of which the last is to be believed.
func (g *generator) forwarded(req *authz.Request) {
	switch g.IntN(4) {
	case 0:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"10.1.2.3"}, netip.MustParseAddr("10.1.2.3")
	case 1:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"10.1.2.3, 127.0.0.1", "192.0.2.1"}, netip.MustParseAddr("192.0.2.1")
	case 2:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"192.0.2.1,2001:db8::1"}, netip.MustParseAddr("2001:db8::1")
	}
}

// naming is a rule for a few peers that it names.
func (g *generator) naming(ports []uint32) *security.Rule {
	r := g.rule(ports)
	exact := []string{"cluster.local/ns/finance/sa/a.b", "cluster.local/ns/finance/sa/axb", "old.local/ns/shop/sa/auditor", "other.domain/ns/shop/sa/auditor"}
	for range 1 + g.IntN(2) {
		r.From = append(r.From, &security.Rule_From{Source: &security.Source{Principals: []string{g.one(exact...), g.one(exact...)}, NotNamespaces: g.pick("namespaces")}})
	}
	for _, from := range r.From[:len(r.From)-1] {
		from.Source = &security.Source{Principals: []string{g.one(exact...)}, IpBlocks: from.GetSource().GetIpBlocks()}
	}
	return r
}

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

// caller is a client of the mesh, or one in plaintext.
func (g *generator) caller() caller {
	c := caller{from: netip.MustParseAddr(g.one("127.0.0.1", "127.0.0.3")), http2: g.IntN(2) == 0}
	if c.from == netip.MustParseAddr("127.0.0.3") && g.IntN(2) == 0 { // which is a load balancer's
		c.named = netip.MustParseAddr(g.one("10.1.2.3", "192.0.2.1", "127.0.0.1"))
	}
	if g.IntN(4) != 0 {
		c.id, c.sni = identities[g.IntN(len(identities))], g.one("outbound_.80_._.payroll", "payroll", "Payroll", "other", "")
	}
	return c
}

// anyOf is one of some callers.
func (g *generator) anyOf(callers []caller) caller { return callers[g.IntN(len(callers))] }

// connection is what rules see of one by a client.
func (g *generator) connection(to netip.AddrPort, by caller) authz.Request {
	return authz.Request{Source: by.id, SNI: by.sni, SourceIP: by.from, RemoteIP: by.named, DestinationIP: to.Addr(), DestinationPort: uint32(to.Port())}
}

// request is what rules see of one by a client.
func (g *generator) request(to netip.AddrPort, by caller) authz.Request {
	req := g.connection(to, by)
	req.HTTP, req.NormalizesPaths, req.Headers = true, g.normalizes, map[string][]string{}
	req.Host = g.text(9, "payroll", "PayRoll.finance", "payroll:8080", "payroll.finance:80", "payroll.", "payroll.finance.:80", "x.finance", "[::1]", "[::1]:80",
		"payroll:080", "payroll..", "payroll.finance")
	req.Method = g.text(9, "GET", "POST", "PUT", "DELETE", "PATCH", "GET", "POST", "PROPFIND", "delete", "Delete", "PURGE")
	req.Path = g.path()
	if g.IntN(8) == 0 {
		req.Host = g.one("payroll:x", "payroll:80@evil", "u@payroll", "", "payroll:", "payroll,x", "payroll:80:80", "payroll:8080.", "[::1", "*")
	}
	if g.IntN(12) == 0 {
		req.Method, req.Path = "CONNECT", ""
	}
	if g.IntN(3) != 0 {
		req.Claims = g.claims()
	}
	g.forwarded(&req)
	if g.IntN(8) != 0 {
		req.Headers["x-test"] = g.lines()
	}
	return req
}

// lines are those of one header, of which some list several values.
func (g *generator) lines() (out []string) {
	one := func() string {
		return g.one("ok", "bad", "axb", "a.b", "ok,bad", "bad , ok", "é,x", "b*d", "bxd", "\xe9", "ba", "", "ok,\xff", ",", "bad,", ",bad", "BAD")
	}
	for range 1 + g.IntN(2)*g.IntN(4) {
		out = append(out, one())
	}
	return out
}
