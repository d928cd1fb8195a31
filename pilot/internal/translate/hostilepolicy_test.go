package translate_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// TestValuesOfPoliciesAreNoPatterns admits one value of each field that is text, of characters that mean something else in patterns, and sends another that such a pattern would
// match.
func TestValuesOfPoliciesAreNoPatterns(t *testing.T) {
	a := newIssuer(t, "https://a.example")
	type request struct {
		by    spiffe.ID
		sni   string
		req   authz.Request
		claim any
	}
	id := func(ns, account string) spiffe.ID {
		return spiffe.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: account}
	}
	asking := func(change func(*request)) request {
		r := request{req: authz.Request{Method: "GET", Path: "/", Host: "h", Headers: map[string][]string{}}, by: id("shop", "a.b")}
		change(&r)
		return r
	}
	path := func(p string) request { return asking(func(r *request) { r.req.Path = p }) }
	header := func(v string) request { return asking(func(r *request) { r.req.Headers["x"] = []string{v} }) }
	account := func(name string) request { return asking(func(r *request) { r.by = id("shop", name) }) }
	cases := []struct {
		rule      string
		that, not request
	}{
		{`{"from":[{"source":{"principals":["cluster.local/ns/shop/sa/a.b"]}}]}`, account("a.b"), account("axb")},
		{`{"from":[{"source":{"principals":["cluster.local/ns/shop/sa/a.*"]}}]}`, account("a.b"), account("axb")},
		{`{"from":[{"source":{"principals":["*/sa/a.b"]}}]}`, account("a.b"), account("axb")},
		{`{"from":[{"source":{"serviceAccounts":["shop/a.b"]}}]}`, account("a.b"), account("axb")},
		{`{"when":[{"key":"source.serviceAccount","values":["shop/a.b"]}]}`, account("a.b"), account("axb")},
		{`{"from":[{"source":{"trustDomains":["cluster.local"]}}],"to":[{"operation":{"paths":["/a.b"]}}]}`, path("/a.b"), path("/axb")},
		{`{"to":[{"operation":{"paths":["/a.b"]}}]}`, path("/a.b"), path("/axb")},
		{`{"to":[{"operation":{"paths":["/a.b*"]}}]}`, path("/a.bc"), path("/axbc")},
		{`{"to":[{"operation":{"paths":["*a.b"]}}]}`, path("/a.b"), path("/axb")},
		{`{"to":[{"operation":{"paths":["/{*}/a.b"]}}]}`, path("/x/a.b"), path("/x/axb")},
		{`{"to":[{"operation":{"paths":["/a+(b)/{**}"]}}]}`, path("/a+(b)/c"), path("/aab/c")},
		{`{"to":[{"operation":{"paths":["/a$"]}}]}`, path("/a$"), path("/a")},
		{`{"to":[{"operation":{"hosts":["a.b"]}}]}`, asking(func(r *request) { r.req.Host = "a.b" }), asking(func(r *request) { r.req.Host = "axb" })},
		{`{"to":[{"operation":{"hosts":["*.a.b"]}}]}`, asking(func(r *request) { r.req.Host = "x.a.b" }), asking(func(r *request) { r.req.Host = "x.axb" })},
		{`{"to":[{"operation":{"methods":["A.B"]}}]}`, asking(func(r *request) { r.req.Method = "A.B" }), asking(func(r *request) { r.req.Method = "AXB" })},
		{`{"when":[{"key":"request.headers[x]","values":["a.b"]}]}`, header("a.b"), header("axb")},
		{`{"when":[{"key":"request.headers[x]","values":["(a|b)"]}]}`, header("(a|b)"), header("a")},
		{`{"when":[{"key":"request.headers[x]","values":["[a-z]*"]}]}`, header("[a-z]x"), header("ax")},
		{`{"when":[{"key":"request.headers[x]","values":["*\\d"]}]}`, header(`x\d`), header("x7")},
		{`{"when":[{"key":"connection.sni","values":["a.b"]}]}`, asking(func(r *request) { r.sni = "a.b" }), asking(func(r *request) { r.sni = "axb" })},
		{`{"when":[{"key":"request.auth.claims[role]","values":["a.b"]}]}`, asking(func(r *request) { r.claim = "a.b" }), asking(func(r *request) { r.claim = "axb" })},
		{`{"when":[{"key":"request.auth.claims[role]","values":["a.b"]}]}`, asking(func(r *request) { r.claim = []string{"x", "a.b"} }), asking(func(r *request) { r.claim = []string{"x", "axb"} })},
		{`{"from":[{"source":{"requestPrincipals":["https://a.example/a.b"]}}],"when":[{"key":"request.auth.claims[role]","values":["a.b"]}]}`, asking(func(r *request) { r.claim = "a.b" }), asking(func(r *request) { r.claim = "axb" })},
	}
	v := newVerifying(t, len(cases))
	var ports []uint32
	clients := map[spiffe.ID]envoytest.Leaf{}
	for _, c := range cases {
		p := policyOf(t, "p", `{"rules":[`+c.rule+`]}`)
		ports = append(ports, v.workload([]compile.Issuer{{Rule: ruleOf(a, nil), KeySet: a.published(t)}}, p))
	}
	for _, name := range []string{"a.b", "axb"} {
		clients[id("shop", name)] = v.scene.ca.Issue(t, id("shop", name).String())
	}
	v.start()
	for i, c := range cases {
		for _, try := range []struct {
			request
			want int
		}{{c.that, http.StatusOK}, {c.not, http.StatusForbidden}} {
			if try.claim != nil {
				try.req.Headers["authorization"] = []string{"Bearer " + a.token(t, jose.ES256, claimSet{"role": try.claim, "sub": "a.b"})}
			}
			conn := caller{id: try.by, sni: try.sni}.dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(ports[i])), clients)
			status, _, err := newHTTP1(conn).ask(try.req)
			conn.Close()
			if err != nil || status != try.want {
				t.Errorf("%s: %+v gets %d, %v; want %d", c.rule, try.request, status, err, try.want)
			}
		}
	}
}

// TestLargestPoliciesAreEnforced has a proxy with as many and as long values as policies may have, of the dearest kinds, and more than one such policy.
func TestLargestPoliciesAreEnforced(t *testing.T) {
	long := func(i int, of string) string { return fmt.Sprintf("/p%d/", i) + strings.Repeat(of, 400/len(of)) }
	var policies []authz.Policy
	for n, of := range []string{"{*}/", "a.b/{*}/", "abcdefgh"} {
		spec := &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_DENY}
		for r := range 4 {
			var paths []string
			for i := range 250 {
				paths = append(paths, long(r*250+i, of)+"end")
			}
			spec.Rules = append(spec.Rules, &security.Rule{To: []*security.Rule_To{{Operation: &security.Operation{Paths: paths}}}})
		}
		p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(n)}, spec, aliasedOptions)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		policies = append(policies, p)
	}
	most := &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_DENY}
	for i := range authz.MaxRules {
		most.Rules = append(most.Rules, &security.Rule{When: []*security.Condition{{Key: fmt.Sprintf("request.headers[x-%d]", i), Values: []string{"a*", "*b", strings.Repeat("c", authz.MaxValueLength)}}}})
	}
	p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: "most"}, most, aliasedOptions)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	v := newVerifying(t, 1)
	port := v.workload(nil, append(policies, p)...)
	v.start()
	ask := func(path string, want int, headers ...string) {
		t.Helper()
		if resp, _, arrived := v.ask(port, "GET", path, headers...); resp.StatusCode != want || (arrived != nil) != (want == 200) {
			t.Errorf("%.40s… %.40q: %d, want %d", path, headers, resp.StatusCode, want)
		}
	}
	for _, i := range []int{0, 777, 999} {
		ask(strings.ReplaceAll(long(i, "{*}/"), "{*}", "x")+"end", 403)
		ask(strings.ReplaceAll(long(i, "{*}/"), "{*}", "x")+"start", 200)
		ask(strings.ReplaceAll(long(i, "a.b/{*}/"), "{*}", "y")+"end", 403)
		ask(long(i, "abcdefgh")+"end", 403)
		ask(long(i, "abcdefgh")+"ends", 200)
	}
	ask("/", 200, "x-511: d")
	ask("/", 403, "x-511: d,"+strings.Repeat("c", authz.MaxValueLength))
	ask("/"+strings.Repeat("a/", 20_000), 200) // a path for which a matcher that tries again and again would take its time
}

// hostileText is what no author would write, and Envoy may not take: of any bytes that a policy can hold.
func (g *generator) hostileText() string {
	var sb strings.Builder
	for range 1 + g.IntN(6) {
		sb.WriteString(g.one("a", "/", "*", "{*}", "{**}", "%", "%2f", ".", "..", "[", "]", "(", ")", "(?i", "\\", "\\Q", "\\E", "^", "$", "|", "+", "?", "é", "\u2028", "\ufffd", "\U0010ffff", "\x00", "\x01", "\n", "\r\n", "\t",
			" ", "\"", "'", ",", ":", ";", "=", "-", "_", "@", "<", "&", "#", "80", "https://", "://", strings.Repeat("a", 300), strings.Repeat("/{*}", 50), strings.Repeat("(", 200), "A", "::1", "10.0.0.0/8"))
	}
	return sb.String()
}

// TestEnvoyTakesWhatIsAdmitted makes policies of hostile texts in each field. Those that are admitted are one configuration of one Envoy, which would refuse the whole
// for one value that it does not take: then nothing would reach the proxy any more, and who wrote the policy would not be told.
func TestEnvoyTakesWhatIsAdmitted(t *testing.T) {
	seed := newSeed()
	t.Logf("to see it again: -seed %d", seed)
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 3))}
	a := newIssuer(t, "https://a.example")
	keys := a.published(t)
	const workloads = 8
	v := newVerifying(t, workloads)
	admitted, tokens := 0, 0
	for range workloads {
		var policies []authz.Policy
		var issuers []compile.Issuer
		for i := range 400 {
			rule, field := &security.Rule{}, g.one("principals", "namespaces", "hosts", "methods", "paths", "requestPrincipals", "header", "key", "claim", "sni", "trustDomains", "serviceAccounts")
			text := g.hostileText()
			spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 1, 2}[g.IntN(3)], Rules: []*security.Rule{rule}}
			switch field {
			case "header":
				rule.When = []*security.Condition{{Key: "request.headers[x]", Values: []string{text}}}
			case "key":
				rule.When = []*security.Condition{{Key: "request.headers[" + text + "]", Values: []string{"a"}}}
			case "claim":
				rule.When = []*security.Condition{{Key: "request.auth.claims[" + g.one(text, "a") + "]", Values: []string{g.one(text, "a")}}}
			case "sni":
				rule.When = []*security.Condition{{Key: "connection.sni", Values: []string{text}}}
			case "hosts", "methods", "paths":
				rule.To = []*security.Rule_To{{Operation: &security.Operation{}}}
				give(rule.To[0].Operation, field, text)
			default:
				rule.From = []*security.Rule_From{{Source: &security.Source{}}}
				give(rule.From[0].Source, field, text)
			}
			if p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(i)}, spec, aliasedOptions); len(problems) == 0 {
				policies = append(policies, p)
			}
		}
		for range 400 {
			rule := &security.JWTRule{Issuer: "https://a.example", JwksUri: "https://a.example/keys"}
			text := g.hostileText()
			switch g.IntN(9) {
			case 0:
				rule.Issuer = text
			case 1:
				rule.Audiences = []string{text}
			case 2:
				rule.FromHeaders = []*security.JWTHeader{{Name: text}}
			case 3:
				rule.FromHeaders = []*security.JWTHeader{{Name: "x", Prefix: text}}
			case 4:
				rule.FromParams = []string{text}
			case 5:
				rule.FromCookies = []string{text}
			case 6:
				rule.OutputPayloadToHeader = text
			case 7:
				rule.OutputClaimToHeaders = []*security.ClaimToHeader{{Header: g.one(text, "x"), Claim: g.one(text, "a")}}
			case 8:
				rule.SpaceDelimitedClaims = []string{text}
			}
			if p, problems := jwt.FromRequestAuthentication(authz.Meta{}, &security.RequestAuthentication{JwtRules: []*security.JWTRule{rule}}, aliasedOptions); len(problems) == 0 {
				issuers = append(issuers, compile.Issuer{Rule: p.Rules[0], KeySet: keys})
			}
		}
		admitted, tokens = admitted+len(policies), tokens+len(issuers)
		v.workload(issuers, policies...)
	}
	t.Logf("%d policies about requests and %d about tokens are admitted, of %d", admitted, tokens, workloads*800)
	if admitted < 300 || tokens < 300 {
		t.Error("hardly any are admitted: the test does not test much")
	}
	v.start()
}

// give has a list of texts of a message have one.
func give(m proto.Message, field, text string) {
	fields := m.ProtoReflect()
	fields.Mutable(fields.Descriptor().Fields().ByJSONName(field)).List().Append(protoreflect.ValueOfString(text))
}

// sparse fills some fields of a message, and leaves out others, however deep.
func (g *generator) sparse(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case g.IntN(2) == 0 || depth > 8:
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(g.one("", "a")).MapKey(), protoreflect.ValueOfString(g.one("", "a")))
		case f.IsList() && f.Message() != nil:
			for range 1 + g.IntN(2) {
				g.sparse(m.Mutable(f).List().AppendMutable().Message(), depth+1)
			}
		case f.Message() != nil:
			g.sparse(m.Mutable(f).Message(), depth+1)
		case f.Kind() == protoreflect.StringKind && f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfString(g.one("", "a", "request.headers[x]", "*")))
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(g.one("", "a", "request.headers[x]", "request.auth.claims[a]", "source.ip")))
		}
	}
}

// TestWhateverIsLeftOutTheRestIsMade makes policies of which any field may not be there, also those that are not admitted, all that a proxy has of them, and decisions.
func TestWhateverIsLeftOutTheRestIsMade(t *testing.T) {
	seed := newSeed()
	t.Logf("to see it again: -seed %d", seed)
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 4))}
	for range 300 {
		spec, tokens := &security.AuthorizationPolicy{}, &security.RequestAuthentication{}
		g.sparse(spec.ProtoReflect(), 0)
		g.sparse(tokens.ProtoReflect(), 0)
		spec.Action = security.AuthorizationPolicy_Action(g.IntN(5))
		if g.IntN(10) == 0 { // as a decoder may leave it
			spec.Rules = append(spec.Rules, nil, &security.Rule{From: []*security.Rule_From{nil}, To: []*security.Rule_To{nil}, When: []*security.Condition{nil}})
			tokens.JwtRules = append(tokens.JwtRules, nil)
		}
		p, _ := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: "p"}, spec, aliasedOptions)
		r, problems := jwt.FromRequestAuthentication(authz.Meta{Namespace: "finance", Name: "r"}, tokens, aliasedOptions)
		w := &compile.Workload{Class: compile.Class{Namespace: "finance"}, Policies: []authz.Policy{p}, Ports: []compile.InboundPort{{Number: 80, Mode: authz.Permissive}}}
		for _, rule := range r.Rules {
			if len(problems) == 0 { // others are not verified, as all is denied
				w.Issuers = append(w.Issuers, compile.Issuer{Rule: rule, KeySet: jwt.NoKeys})
			}
		}
		translate.InboundListener(aliased, w)
		for _, name := range translate.AuthorizationNames {
			if translate.HasAuthorization(w, name) && translate.Authorization(w, name, translate.ModuleSent) == nil {
				t.Errorf("nothing is made of %v", spec)
			}
		}
		authz.Evaluate(w.Policies, authz.Request{HTTP: true, Host: "h", Path: "/"})
		authz.Evaluate(w.Policies, authz.Request{})
	}
}

// TestWithoutKeysNoneIsMadeUp looks for keys in the configuration of a workload whose issuer's were never seen.
func TestWithoutKeysNoneIsMadeUp(t *testing.T) {
	a := newIssuer(t, "https://issuer.example/a")
	w := &compile.Workload{Class: compile.Class{Namespace: "finance"}, Issuers: []compile.Issuer{{Rule: ruleOf(a, nil), KeySet: jwt.NoKeys}}}
	for _, name := range translate.AuthorizationNames {
		if !translate.HasAuthorization(w, name) {
			continue
		}
		text, err := protojson.Marshal(translate.Authorization(w, name, translate.ModuleSent))
		if err != nil {
			t.Fatal(err)
		}
		for _, sign := range []string{"kty", "localJwks", "BEGIN"} {
			if strings.Contains(string(text), sign) {
				t.Errorf("%s has %q: %s", name, sign, text)
			}
		}
	}
}
