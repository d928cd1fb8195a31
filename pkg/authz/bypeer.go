package authz

import "slices"

const (
	// fewDemands are asked one after the other in no more time than it takes to find those that concern a peer.
	fewDemands = 20
	// maxGrowth is how many times as large as the policies all their parts together may be.
	maxGrowth = 4
)

// ByPeer takes the policies of an action apart by the identities that they name exactly, for somebody who decides about many requests: for each of these
// identities it has what can match its requests. A rule keeps its name there and, of the identities in the clause by which it was found, the one. For all
// other peers, and those whose certificate has several URIs, the policies are to be asked as they are.
//
// It is nil where nothing would be gained: the policies demand little, or rules that are for everyone would stand in too many parts.
func ByPeer(policies []Policy, action Action) map[string][]Policy {
	var all []asked
	var frame []Policy // without rules, so that each part enforces something and tries something out where the whole does
	demands, size, general := 0, 0, 0
	out := map[string][]Policy{}
	for i := range policies {
		p := &policies[i]
		if p.Action != action || p.Ignored {
			continue
		}
		if !slices.ContainsFunc(frame, func(f Policy) bool { return f.DryRun == p.DryRun }) {
			frame = append(frame, Policy{Meta: p.Meta, Action: p.Action})
		}
		for _, r := range p.Rules {
			if r.Never {
				continue
			}
			a := asked{of: p, rule: r, byPeer: r.byPeer()}
			all, demands, size = append(all, a), demands+max(1, len(a.byPeer)), size+r.size()
			if a.byPeer == nil {
				general += r.size()
			}
			for uri := range a.byPeer {
				out[uri] = nil
			}
		}
	}
	grown := general * len(out)
	if len(out) == 0 || demands < fewDemands || grown > maxGrowth*size {
		return nil
	}
	for uri := range out {
		out[uri] = slices.Clone(frame)
	}
	for _, a := range all {
		if a.byPeer == nil {
			for uri := range out {
				out[uri] = a.in(out[uri], a.rule)
			}
		}
		for uri, r := range a.byPeer {
			out[uri], grown = a.in(out[uri], r), grown+r.size()
		}
	}
	if grown > maxGrowth*size {
		return nil
	}
	return out
}

// asked is a rule of a policy, and what is left of it for each peer, nil if it is for others than those that it names.
type asked struct {
	of     *Policy
	rule   Rule
	byPeer map[string]Rule
}

// in adds a rule to a part, in which the rules of a policy follow each other.
func (a asked) in(part []Policy, r Rule) []Policy {
	if n := len(part); n == 0 || part[n-1].Meta != a.of.Meta {
		part = append(part, Policy{Meta: a.of.Meta, Action: a.of.Action})
	}
	last := &part[len(part)-1]
	last.Rules = append(last.Rules, r)
	return part
}

// byPeer is what is left of a rule for each peer that may match it, nil if it may match peers that it does not name exactly.
func (r Rule) byPeer() map[string]Rule {
	out := map[string]Rule{}
	if i := r.When.naming(); i >= 0 {
		for _, m := range r.When[i].Values {
			left := r
			left.When = r.When.only(i, m)
			out[m.Value] = left
		}
		return out
	}
	for _, from := range r.From {
		i := from.naming()
		if i < 0 {
			return nil
		}
		for _, m := range from[i].Values {
			left, ok := out[m.Value]
			if !ok {
				left = r
				left.From = nil
			}
			left.From = append(left.From, from.only(i, m))
			out[m.Value] = left
		}
	}
	if len(r.From) == 0 {
		return nil
	}
	return out
}

// naming is the index of a clause that nobody meets but the identities that it names exactly; -1 if there is none.
func (clauses Clauses) naming() int {
	return slices.IndexFunc(clauses, func(c Clause) bool {
		return c.Attribute.Identity() && len(c.Values) > 0 && !slices.ContainsFunc(c.Values, func(m Match) bool { return m.Kind != Exact })
	})
}

// only has the clause of an index ask for one value.
func (clauses Clauses) only(i int, m Match) Clauses {
	out := slices.Clone(clauses)
	out[i].Values = []Match{m}
	return out
}

// size is how much there is to ask.
func (r Rule) size() int {
	n := 1
	for _, clauses := range slices.Concat(r.From, r.To, []Clauses{r.When}) {
		for _, c := range clauses {
			n += len(c.Values) + len(c.Not)
		}
	}
	return n
}
