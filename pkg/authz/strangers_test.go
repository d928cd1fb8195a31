package authz

import "testing"

// Whom policies may let through without an identity is what the evaluator lets through, whatever is known of the connection beside its port.
func TestAdmitsStrangersWhomPoliciesCanLetThrough(t *testing.T) {
	id := Clause{Attribute: Namespace, Values: []Match{{Exact, "shop"}}}
	notID := Clause{Attribute: Namespace, Not: []Match{{Exact, "shop"}}}
	at := func(port string) Clause { return Clause{Attribute: DestinationPort, Values: []Match{{Port, port}}} }
	from := Clause{Attribute: SourceIP, Values: []Match{{CIDR, "10.0.0.0/8"}}}
	path := Clause{Attribute: Path, Values: []Match{{Exact, "/x"}}}
	rule := func(f, to Clauses) Rule {
		r := Rule{}
		if f != nil {
			r.From = []Clauses{f}
		}
		if to != nil {
			r.To = []Clauses{to}
		}
		return r
	}
	policy := func(a Action, rules ...Rule) Policy {
		return Policy{Meta: Meta{Name: string(a)}, Action: a, Rules: rules}
	}
	for _, c := range []struct {
		what     string
		policies []Policy
		want     bool
	}{
		{"no policy", nil, true},
		{"ALLOW without rules", []Policy{policy(Allow)}, false},
		{"everybody", []Policy{policy(Allow, rule(nil, nil))}, true},
		{"an identity", []Policy{policy(Allow, rule(Clauses{id}, nil))}, false},
		{"whoever has another identity, or none", []Policy{policy(Allow, rule(Clauses{notID}, nil))}, true},
		{"an identity, or an address", []Policy{policy(Allow, rule(Clauses{id}, nil), rule(Clauses{from}, nil))}, true},
		{"an identity at an address", []Policy{policy(Allow, rule(Clauses{id, from}, nil))}, false},
		{"the port", []Policy{policy(Allow, rule(nil, Clauses{at("25")}))}, true},
		{"another port", []Policy{policy(Allow, rule(nil, Clauses{at("26")}))}, false},
		{"a path", []Policy{policy(Allow, rule(nil, Clauses{path}))}, false},
		{"DENY of an identity", []Policy{policy(Deny, rule(Clauses{id}, nil))}, true},
		{"DENY of who has none", []Policy{policy(Deny, rule(Clauses{notID}, nil))}, false},
		{"DENY of an address", []Policy{policy(Deny, rule(Clauses{from}, nil))}, true},
		{"DENY of the port", []Policy{policy(Allow, rule(nil, nil)), policy(Deny, rule(nil, Clauses{at("25"), path}))}, false},
		{"DENY of another port", []Policy{policy(Deny, rule(nil, Clauses{at("26"), path}))}, true},
		{"DENY on trial", []Policy{{Meta: Meta{Name: "x", DryRun: true}, Action: Deny, Rules: []Rule{{}}}}, true},
	} {
		if got := AdmitsStrangers(c.policies, 25); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
