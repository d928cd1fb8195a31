package authz

import "slices"

// Assume are the policies as they would decide if every clause about something unknown held, where that is a reason to deny and not one to allow (cautious), or the other way round. What
// both decide alike is certain, whatever the unknown is.
func Assume(policies []Policy, unknown func(Clause) bool, cautious bool) []Policy {
	out := slices.Clone(policies)
	for i := range out {
		holds := cautious == (out[i].Action != Allow)
		rules := slices.Clone(out[i].Rules)
		for j := range rules {
			rules[j] = rules[j].assuming(unknown, holds)
		}
		out[i].Rules = rules
	}
	return out
}

func (r Rule) assuming(unknown func(Clause) bool, holds bool) Rule {
	some := func(clauses Clauses) bool { return slices.ContainsFunc(clauses, unknown) }
	without := func(clauses Clauses) (out Clauses) {
		for _, c := range clauses {
			if !unknown(c) {
				out = append(out, c)
			}
		}
		return out
	}
	r.Never = r.Never || !holds && some(r.When)
	r.When = without(r.When)
	for _, alternatives := range []*[]Clauses{&r.From, &r.To} {
		var left []Clauses
		for _, a := range *alternatives {
			if holds || !some(a) {
				left = append(left, without(a))
			}
		}
		r.Never = r.Never || len(*alternatives) > 0 && len(left) == 0
		*alternatives = left
	}
	return r
}

// Uncertain lists the clauses about something unknown, by what a request must have for them.
func Uncertain(policies []Policy, unknown func(Clause) bool) (out []Clause) {
	for _, p := range policies {
		if p.Ignored || p.DryRun || p.Action == Audit || p.Action == Custom {
			continue
		}
		for _, r := range p.Rules {
			for _, clauses := range slices.Concat(r.From, r.To, []Clauses{r.When}) {
				for _, c := range clauses {
					if unknown(c) {
						out = append(out, c)
					}
				}
			}
		}
	}
	return out
}
