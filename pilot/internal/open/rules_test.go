package open

import (
	"slices"
	"testing"

	istio "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// An expression that the filter's programs have no word for is not known, and no policy is made into one.
func TestExpressionsAreWrittenAsPrograms(t *testing.T) {
	for expression, want := range map[string]bool{
		`spiffe://cluster\.local/ns/shop/sa/[-a-z0-9.]+`: true, `(?i)a|ä`: true, `(?s:.)*`: true, `^a$`: true,
		`a\b`: false, `(?m)^a`: false, `(`: false, `(?:a{900}){9}`: false,
	} {
		if _, ok := program(expression); ok != want {
			t.Errorf("%s: %v", expression, ok)
		}
	}
}

// What each value of the identity fields is made into is known whole: no connection is spared for an expression that was not understood.
func TestAllThatIsSaidOfIdentitiesIsKnown(t *testing.T) {
	o := authz.Options{TrustDomain: "cluster.local", TrustDomainAliases: []string{"old.example", "older.example"}, RootNamespace: "bulwark-system"}
	source := &istio.Source{
		Principals: []string{"cluster.local/ns/a/sa/b", "*", "cluster.local/ns/a/*", "*/sa/b", "other.example/ns/a/sa/b"}, Namespaces: []string{"a", "a*", "*a", "*"},
	}
	for _, from := range []*istio.Source{source, {ServiceAccounts: []string{"a/b", "c"}}, {TrustDomains: []string{"cluster.local", "old*", "*"}}, {NotPrincipals: source.GetPrincipals(), NotNamespaces: source.GetNamespaces()}} {
		p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "n", Name: "p"}, &istio.AuthorizationPolicy{Action: istio.AuthorizationPolicy_DENY,
			Rules: []*istio.Rule{{From: []*istio.Rule_From{{Source: from}}}}}, o)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for _, r := range p.Rules {
			for _, clauses := range r.From {
				for _, c := range clauses {
					for _, m := range append(c.Values, c.Not...) {
						if got := value(c, m); string(got) == string(maybe) {
							t.Errorf("%s %s %q is not understood", c.Attribute, m.Kind, m.Value)
						}
					}
				}
			}
		}
	}
}

func TestWhatIsCertainIsDecidedBeforehand(t *testing.T) {
	p, port := isText(peerURI, authz.Match{Kind: authz.Exact, Value: "x"}), portIs(8080)
	for name, c := range map[string]struct{ got, want []byte }{
		"nothing or":   {either(), no},
		"nothing and":  {both(), yes},
		"or of a yes":  {either(p, yes, port), yes},
		"and of a no":  {both(p, no), no},
		"one left":     {both(yes, p, yes), p},
		"repeated":     {either(p, p), p},
		"not yes":      {not(yes), no},
		"not no":       {not(no), yes},
		"no policies":  {Rules(&compile.Workload{Other: compile.InboundPort{Mode: authz.Permissive}}), []byte("P\x02\x00\x00\x00NNN")},
		"many or":      {either(slices.Repeat([][]byte{p, port}, 1)...), append([]byte("|\x02\x00\x0b\x00\x00\x00"), slices.Concat(p, port)...)},
		"a claim":      {value(authz.Clause{Attribute: authz.Claim, Key: "[a][bc]"}, authz.Match{Kind: authz.Exact, Value: "x"}), []byte("tc\x07\x00\x01\x00a\x02\x00bc=\x01\x00\x00\x00x")},
		"never allows": {rule(authz.Rule{Never: true}), no},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", name, c.got, c.want)
		}
	}
}
