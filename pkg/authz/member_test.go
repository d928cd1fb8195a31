package authz

import (
	"fmt"
	"testing"

	security "istio.io/api/security/v1beta1"
)

// Whom a rule can admit is told where it names identities or namespaces exactly, and never too few.
func TestMembersOfARule(t *testing.T) {
	principals := func(v ...string) *security.Source { return &security.Source{Principals: v} }
	for name, c := range map[string]struct {
		from []*security.Source
		when []*security.Condition
		want string
	}{
		"no from":                       {want: "[] false"},
		"a principal":                   {from: []*security.Source{principals("cluster.local/ns/a/sa/x")}, want: "[a/x] true"},
		"of an alias":                   {from: []*security.Source{principals("old.mesh/ns/a/sa/x")}, want: "[a/x] true"},
		"of a foreign trust domain":     {from: []*security.Source{principals("other/ns/a/sa/x")}, want: "[] true"},
		"any principal":                 {from: []*security.Source{principals("*")}, want: "[] false"},
		"an account's beginning":        {from: []*security.Source{principals("cluster.local/ns/a/sa/x*")}, want: "[a/*] true"},
		"a namespace's beginning":       {from: []*security.Source{principals("cluster.local/ns/a*")}, want: "[] false"},
		"an account of any namespace":   {from: []*security.Source{principals("*/sa/x")}, want: "[] false"},
		"namespaces":                    {from: []*security.Source{{Namespaces: []string{"a", "b"}}}, want: "[a/* b/*] true"},
		"one of them with a wildcard":   {from: []*security.Source{{Namespaces: []string{"a", "b*"}}}, want: "[] false"},
		"accounts":                      {from: []*security.Source{{ServiceAccounts: []string{"x", "b/y"}}}, want: "[own/x b/y] true"},
		"all but a namespace":           {from: []*security.Source{{NotNamespaces: []string{"a"}}}, want: "[] false"},
		"addresses":                     {from: []*security.Source{{IpBlocks: []string{"10.0.0.0/8"}}}, want: "[] false"},
		"a principal from an address":   {from: []*security.Source{{Principals: []string{"cluster.local/ns/a/sa/x"}, IpBlocks: []string{"10.0.0.0/8"}}}, want: "[a/x] true"},
		"a namespace but an account":    {from: []*security.Source{{Namespaces: []string{"a"}, NotPrincipals: []string{"cluster.local/ns/a/sa/x"}}}, want: "[a/*] true"},
		"the trust domain":              {from: []*security.Source{{TrustDomains: []string{"cluster.local"}}}, want: "[] false"},
		"a principal, or an address":    {from: []*security.Source{principals("cluster.local/ns/a/sa/x"), {IpBlocks: []string{"10.0.0.0/8"}}}, want: "[] false"},
		"a token":                       {from: []*security.Source{{RequestPrincipals: []string{"*"}}}, want: "[] false"},
		"a condition":                   {when: []*security.Condition{{Key: "source.namespace", Values: []string{"a"}}}, want: "[a/*] true"},
		"a negative condition":          {when: []*security.Condition{{Key: "source.namespace", NotValues: []string{"a"}}}, want: "[] false"},
		"a condition on something else": {when: []*security.Condition{{Key: "source.ip", Values: []string{"10.0.0.1"}}}, want: "[] false"},
	} {
		rule := &security.Rule{When: c.when}
		for _, s := range c.from {
			rule.From = append(rule.From, &security.Rule_From{Source: s})
		}
		p, _ := FromAuthorizationPolicy(Meta{Namespace: "own"}, &security.AuthorizationPolicy{Rules: []*security.Rule{rule}},
			Options{TrustDomain: "cluster.local", TrustDomainAliases: []string{"old.mesh"}, RootNamespace: "bulwark-system"})
		m, ok := p.Rules[0].Members()
		if got := fmt.Sprint(m, ok); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
