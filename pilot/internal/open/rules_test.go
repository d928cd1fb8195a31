package open

import (
	"slices"
	"strings"
	"testing"

	istio "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func TestExpressionsForIdentitiesAreWrittenAsPatterns(t *testing.T) {
	for expression, want := range map[string]string{
		`spiffe://cluster\.local/ns/shop/sa/[-a-z0-9.]+`:           "spiffe://cluster.local/ns/shop/sa/+",
		`spiffe://(?:a\.b|c)/ns/pre[-a-z0-9]*/sa/[-a-z0-9.]+`:      "spiffe://a.b/ns/pre*/sa/+ spiffe://c/ns/pre*/sa/+",
		`spiffe://(?:ab|ac)/ns/[-a-z0-9]*end/sa/x`:                 "spiffe://ab/ns/*end/sa/x spiffe://ac/ns/*end/sa/x",
		`spiffe://(?:a|ab)/x`:                                      "spiffe://ab/x spiffe://a/x",
		`spiffe://a{3}/x`:                                          "",
		`(a|b|c|d|e|f|g|h)(a|b|c|d|e|f|g|h)(a|b|c|d|e|f|g|h)(a|b)`: "", // too many
		`(?i)a`: "",
		`(`:     "",
	} {
		got, ok := patternsOf(expression)
		if slices.Sort(got); ok != (want != "") || ok && !slices.Equal(got, sorted(want)) {
			t.Errorf("%s: %v, %v; want %s", expression, got, ok, want)
		}
	}
}

func sorted(words string) []string {
	out := strings.Fields(words)
	slices.Sort(out)
	return out
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
						if got := value(c.Attribute, m); string(got) == string(maybe) {
							t.Errorf("%s %s %q is not understood", c.Attribute, m.Kind, m.Value)
						}
					}
				}
			}
		}
	}
}

func TestWhatIsCertainIsDecidedBeforehand(t *testing.T) {
	p, port := peerIs("x"), portIs(8080)
	for name, c := range map[string]struct{ got, want []byte }{
		"nothing or":   {either(), no},
		"nothing and":  {both(), yes},
		"or of a yes":  {either(p, yes, port), yes},
		"and of a no":  {both(p, no), no},
		"one left":     {both(yes, p, yes), p},
		"repeated":     {either(p, p), p},
		"not yes":      {not(yes), no},
		"not no":       {not(no), yes},
		"no policies":  {Rules(&compile.Workload{Other: compile.InboundPort{Mode: authz.Permissive}}), []byte("\x01\x00\x00\x00NN")},
		"many or":      {either(slices.Repeat([][]byte{p, port}, 1)...), append([]byte("|\x02\x00"), slices.Concat(p, port)...)},
		"a long name":  {peerIs(strings.Repeat("x", most+1)), maybe},
		"never allows": {rule(authz.Rule{Never: true}), no},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", name, c.got, c.want)
		}
	}
}
