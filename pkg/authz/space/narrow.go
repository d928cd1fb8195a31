package space

import (
	"fmt"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// narrowed are sides without the rules that all of them have and that are for clients of whom no rule that only some have is. About clients whom no such rule is for, all sides
// decide alike, with these rules and without them. So what is common to large sets of policies costs next to nothing.
func narrowed(sides []Side, domains string) ([]Side, error) {
	for _, s := range sides {
		if s.Mode != sides[0].Mode || s.HTTP != sides[0].HTTP || s.restricted() != sides[0].restricted() || s.Asked != sides[0].Asked {
			return sides, nil
		}
		for _, m := range authz.Ambiguities {
			if s.concerns(m) != sides[0].concerns(m) {
				return sides, nil
			}
		}
	}
	keys := make([]map[string]bool, len(sides))
	for i, s := range sides {
		keys[i] = map[string]bool{}
		eachRule(s.Policies, func(p *authz.Policy, r authz.Rule) { keys[i][s.ruleKey(p, r)] = true })
	}
	everywhere := func(key string) bool {
		return !slices.ContainsFunc(keys, func(k map[string]bool) bool { return !k[key] })
	}
	a := &axes{index: map[string]int{}, domains: domains}
	a.of(authz.Principal, "")
	clients := map[string][]byClient{} // of each rule
	for _, s := range sides {
		eachRule(s.Policies, func(p *authz.Policy, r authz.Rule) { clients[s.ruleKey(p, r)] = a.clients(r) })
	}
	if err := a.divide(); err != nil {
		return nil, err
	}
	x := a.list[0]
	concerned := newSet(len(x.kinds))
	for key, of := range clients {
		if !everywhere(key) {
			concerned.or(x.clientKinds(of))
		}
	}
	out := slices.Clone(sides)
	for i := range out {
		policies := slices.Clone(out[i].Policies)
		for j := range policies {
			policies[j].Rules = slices.DeleteFunc(slices.Clone(policies[j].Rules), func(r authz.Rule) bool {
				key := sides[i].ruleKey(&policies[j], r)
				return everywhere(key) && !x.clientKinds(clients[key]).meets(concerned)
			})
		}
		out[i].Policies = policies
	}
	return out, nil
}

func (s Side) restricted() bool {
	return slices.ContainsFunc(s.Policies, func(p authz.Policy) bool { return s.decides(p) && p.Action == authz.Allow })
}

// decides reports whether a policy has a part in what the side decides.
func (s Side) decides(p authz.Policy) bool {
	if s.Asked != "" {
		return !p.Ignored && p.Action == authz.Custom && p.Provider == s.Asked
	}
	return !p.Ignored && !p.DryRun && p.Action != authz.Audit && p.Action != authz.Custom
}

func eachRule(policies []authz.Policy, f func(*authz.Policy, authz.Rule)) {
	for i := range policies {
		for _, r := range policies[i].Rules {
			f(&policies[i], r)
		}
	}
}

// ruleKey is what a rule does, whatever it is called.
func (s Side) ruleKey(p *authz.Policy, r authz.Rule) string {
	key := fmt.Sprint(s.decides(*p), p.Action, r.Never)
	for _, clauses := range slices.Concat(r.From, []authz.Clauses{nil}, r.To, []authz.Clauses{nil, r.When}) {
		key += "\x00"
		for _, c := range clauses {
			key += fmt.Sprintf("%q %q %q %q;", c.Attribute, c.Key, c.Values, c.Not)
		}
	}
	return key
}

// byClient is what a rule, by one of its alternatives, demands of the client.
type byClient []clause

// clients are the alternatives of a rule, as far as they are about the client.
func (a *axes) clients(r authz.Rule) (out []byClient) {
	of := func(clauses authz.Clauses) (some byClient) {
		for _, c := range clauses {
			if c.Attribute.Identity() {
				axis, values, not := a.termsOf(c)
				some = append(some, clause{axis: axis, values: values, not: not})
			}
		}
		return some
	}
	when := of(r.When)
	if len(r.From) == 0 {
		return []byClient{when}
	}
	for _, from := range r.From {
		out = append(out, slices.Concat(of(from), when))
	}
	return out
}

// clientKinds are the clients that one of the alternatives is for.
func (x *Axis) clientKinds(alternatives []byClient) set {
	out := newSet(len(x.kinds))
	for _, all := range alternatives {
		kinds := full(len(x.kinds))
		for _, c := range all {
			kinds.and(x.clauseKinds(c.values, c.not))
		}
		out.or(kinds)
	}
	return out
}
