package space

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Name is what the axis is called: the attribute, and of a header its name; client for who asks.
func (x *Axis) Name() string {
	if x.Attribute == authz.Principal {
		return "client"
	}
	return x.name()
}

// Describe says which values the part has, as a list of alternatives in the words of the policies. It is as exact as the division: "any other" is what no value of the policies matches.
func (p Part) Describe() []string {
	x := p.Axis
	rest := full(len(x.kinds)).minus(p.kinds)
	if rest.first() < 0 {
		return []string{"any"}
	}
	inside, outside := x.alternatives(p.kinds), x.alternatives(rest)
	switch {
	case x.Attribute == authz.Principal && slices.Equal(outside, []string{NoIdentity}):
		return []string{"any identity"}
	case len(outside) < len(inside) || x.ordinary.within(p.kinds):
		return []string{"any but " + strings.Join(outside, ", ")}
	}
	return inside
}

// alternatives covers kinds with values of policies that have no others, the widest first, and says of the rest what they are.
func (x *Axis) alternatives(kinds set) (out []string) {
	left := slices.Clone(kinds)
	terms := make([]int, 0, len(x.terms))
	for t := range x.terms {
		if x.terms[t].kinds.first() >= 0 && x.terms[t].kinds.within(kinds) {
			terms = append(terms, t)
		}
	}
	slices.SortStableFunc(terms, func(a, b int) int {
		return cmp.Compare(x.terms[b].kinds.count(), x.terms[a].kinds.count())
	})
	for _, t := range terms {
		if left.meets(x.terms[t].kinds) {
			out = append(out, x.terms[t].text)
			left = left.minus(x.terms[t].kinds)
		}
	}
	left.each(func(i int) { out = append(out, x.describe(i, kinds)) })
	slices.Sort(out)
	return slices.Compact(out)
}

// describe says what one kind is: what no value matches, or what the narrowest that match it have in common, but for what others match that are not asked about.
func (x *Axis) describe(kind int, among set) string {
	k := x.kinds[kind]
	if k.Special != "" {
		return k.Special
	}
	var is []int
	k.in.each(func(t int) {
		narrower := false
		k.in.each(func(other int) {
			narrower = narrower || other != t && x.terms[other].kinds.within(x.terms[t].kinds) && !x.terms[t].kinds.within(x.terms[other].kinds)
		})
		if !narrower {
			is = append(is, t)
		}
	})
	var texts, not []string
	space := full(len(x.kinds))
	for _, t := range is {
		texts = append(texts, x.terms[t].text)
		space.and(x.terms[t].kinds)
	}
	if len(is) == 0 {
		if x.Attribute == authz.Principal {
			return "any other identity"
		}
		return "any other"
	}
	for t := range x.terms {
		if !k.in.has(t) && x.terms[t].kinds.meets(space.minus(among)) {
			not = append(not, x.terms[t].text)
		}
	}
	slices.Sort(texts)
	out := strings.Join(slices.Compact(texts), " and ")
	if len(not) > 0 {
		slices.Sort(not)
		out += " but not " + strings.Join(slices.Compact(not), ", ")
	}
	return out
}
