package analyze

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// rules finds rules that can never match, and those that never decide as another rule has matched before.
func rules(w *world, r *report) {
	for _, p := range w.policies {
		for _, rule := range p.Rules {
			p.compared = append(p.compared, w.comparison.Prepare(p.Action, rule))
		}
	}
	for _, p := range w.policies {
		if p.Ignored || len(p.Problems) > 0 {
			continue // Pilot says what is wrong, and the rules are not as they are written
		}
		beside := w.beside(p)
		for _, rule := range p.Rules {
			p.dead[rule.Index] = w.impossible(r, p, rule)
			// Of other actions, of which more than the rule says what happens, nothing is compared.
			compared := slices.Contains([]authz.Action{authz.Allow, authz.Deny, authz.Audit}, p.Action)
			if !p.dead[rule.Index] && !p.DryRun && compared {
				w.contained(r, p, rule, beside)
			}
		}
	}
}

// impossible says what of a rule can never match, and reports whether the rule can not.
func (w *world) impossible(r *report, p *policy, rule authz.Rule) (never bool) {
	for _, i := range w.comparison.Impossible(p.Action, rule) {
		field := fmt.Sprintf("spec.rules[%d].%s", rule.Index, i.Part)
		if i.Part != "when" {
			field = fmt.Sprintf("%s[%d]", field, i.Index)
		}
		of := string(i.Of)
		if i.Of.Identity() {
			of = "identity"
		}
		what := "no " + of + " meets all that is asked of it, here and in the rule's conditions"
		tail := "; the rule's other alternatives hold"
		switch {
		case i.Never:
			tail = ", so the rule never matches"
		case i.Whole:
			tail = ", so the rule matches no request; at ports that are not HTTP, where what it asks of HTTP is left out, it matches"
		}
		r.say(NeverMatches, p.object, field, "%s%s", what, tail)
		never = never || i.Never
	}
	return never
}

// beside are the policies that decide wherever a policy does.
func (w *world) beside(p *policy) (out []*policy) {
	for _, q := range w.policies {
		if q.enforced() && len(q.Problems) == 0 && (q.Namespace == p.Namespace || q.Namespace == w.set.RootNamespace) && authz.Selects(q.Selector, p.Selector) {
			out = append(out, q)
		}
	}
	return out
}

// contained says that a rule decides nothing, as others match whatever it matches.
func (w *world) contained(r *report, p *policy, rule authz.Rule, beside []*policy) {
	field := fmt.Sprintf("spec.rules[%d]", rule.Index)
	if p.Action == authz.Allow {
		if q, by := w.containing(authz.Deny, p, rule, beside, nil); q != nil {
			r.say(ShadowedByDeny, p.object, field, "whatever it admits is denied by %s, which is asked first", of(q, *by, p))
			return
		}
		// One that asks nothing of its callers makes the others pointless, and is the one to look at.
		open := func(other authz.Rule) bool { return restricts(rule) && !restricts(other) }
		if q, by := w.containing(authz.Allow, p, rule, beside, open); q != nil {
			r.say(WiderThanSiblings, q.object, fmt.Sprintf("spec.rules[%d]", by.Index), "admits from anybody what %s admits from some", of(p, rule, q))
			return
		}
	}
	if q, by := w.containing(p.Action, p, rule, beside, nil); q != nil {
		r.say(Redundant, p.object, field, "%s matches whatever it matches", of(q, *by, p))
	}
}

// containing is a rule of an action that contains another one and may meet a condition; nil if there is none. Of two that contain each other, the first does.
func (w *world) containing(action authz.Action, p *policy, rule authz.Rule, beside []*policy, meets func(authz.Rule) bool) (*policy, *authz.Rule) {
	mine := p.compared[slices.IndexFunc(p.Rules, func(r authz.Rule) bool { return r.Index == rule.Index })]
	for _, q := range beside {
		if q.Action != action {
			continue
		}
		for i, other := range q.Rules {
			itself := q == p && other.Index == rule.Index
			if itself || meets != nil && !meets(other) || !w.comparison.Contains(q.compared[i], mine) {
				continue
			}
			later := cmp.Or(cmp.Compare(q.ID, p.ID), cmp.Compare(other.Index, rule.Index)) > 0
			if q.Action == p.Action && later && w.comparison.Contains(mine, q.compared[i]) && slices.Contains(w.beside(q), p) {
				continue
			}
			return q, &q.Rules[i]
		}
	}
	return nil, nil
}

// restricts reports whether a rule asks for something of who calls: for anything but what is called.
func restricts(r authz.Rule) bool {
	called := []authz.Attribute{authz.DestinationIP, authz.DestinationPort, authz.SNI, authz.Host, authz.Method, authz.Path, authz.Header}
	for _, clauses := range append(slices.Clone(r.From), r.When) {
		if slices.ContainsFunc(clauses, func(c authz.Clause) bool { return !slices.Contains(called, c.Attribute) }) {
			return true
		}
	}
	return false
}

// of names a rule for somebody who reads of a policy.
func of(q *policy, rule authz.Rule, reader *policy) string {
	if q == reader {
		return fmt.Sprintf("spec.rules[%d]", rule.Index)
	}
	return fmt.Sprintf("spec.rules[%d] of %s", rule.Index, q.object)
}
