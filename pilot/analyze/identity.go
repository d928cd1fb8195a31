package analyze

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// plaintext finds rules about identities where callers without one come in.
func plaintext(w *world, r *report) {
	for _, p := range w.policies {
		if !p.enforced() || p.Action == authz.Audit {
			continue
		}
		var refused []inbound
		for _, rule := range p.Rules {
			if rule.Never || p.dead[rule.Index] {
				continue
			}
			field := fmt.Sprintf("spec.rules[%d]", rule.Index)
			open, disabled := p.takesPlaintext(rule)
			if len(open) == 0 {
				continue
			}
			needs, excludes := asksIdentity(rule)
			switch {
			case p.Action == authz.Deny && needs:
				if open = slices.DeleteFunc(open, func(at inbound) bool { return at.class.closed }); len(open) > 0 {
					r.sayIf(w.Whole, PlaintextIdentity, p.object, field, "callers in plaintext have no identity, so it does not deny them: %s", portList(open))
				}
			case p.Action == authz.Allow && needs && disabled:
				r.sayIf(w.Whole, PlaintextIdentity, p.object, field, "no caller has an identity where mutual TLS is disabled, so it never matches: %s", portList(open))
			case p.Action == authz.Allow && needs:
				refused = append(refused, open...)
			case p.Action == authz.Allow && excludes:
				r.sayIf(w.Whole, PlaintextIdentity, p.object, field, "callers in plaintext have no identity, so what it excludes does not exclude them: %s", portList(open))
			}
		}
		if len(refused) > 0 {
			basis := FromConfiguration
			if !w.Whole {
				basis = Guess // another object may make it STRICT
			}
			r.add(PlaintextIdentity, Info, p.object, "", basis, "callers in plaintext may connect, and it never admits them, as they have no identity: %s", portList(refused))
		}
	}
}

// inbound is a port of a workload.
type inbound struct {
	class *class
	port  uint32 // 0: of which no Service says anything
	mode  authz.TLSMode
}

func portList(at []inbound) string {
	type place struct {
		workload string
		port     uint32
	}
	seen := map[place]bool{}
	var out []string
	for _, i := range at {
		p := place{i.class.name(), i.port}
		if seen[p] {
			continue
		}
		seen[p] = true
		port := "every port"
		if i.port != 0 {
			port = fmt.Sprintf("port %d", i.port)
		}
		out = append(out, fmt.Sprintf("%s of %s is %s", port, p.workload, i.mode))
	}
	return some(out)
}

// takesPlaintext are the ports that a rule may match at and that take plaintext, and whether all that it may match at take nothing else.
func (p *policy) takesPlaintext(rule authz.Rule) (open []inbound, disabled bool) {
	disabled = true
	for _, c := range p.classes {
		any := false
		for _, port := range c.Ports {
			if !mayMatch(rule, port.Number) {
				continue
			}
			any = true
			disabled = disabled && port.Mode == authz.Disable
			if port.Mode != authz.Strict {
				open = append(open, inbound{c, port.Number, port.Mode})
			}
		}
		if !any && len(c.Ports) == 0 {
			disabled = disabled && c.Other.Mode == authz.Disable
			if c.Other.Mode != authz.Strict {
				open = append(open, inbound{c, 0, c.Other.Mode})
			}
		}
	}
	return open, disabled
}

// closed reports whether policies admit nobody without an identity.
func closed(policies []*policy) bool {
	restricted := false
	for _, p := range policies {
		if p.Action != authz.Allow || !p.enforced() {
			continue
		}
		restricted = true
		for _, rule := range p.Rules {
			if needs, _ := asksIdentity(rule); !needs && !rule.Never {
				return false
			}
		}
	}
	return restricted
}

// asksIdentity says whether a rule matches nobody without an identity, and if not, whether it excludes some who have one.
func asksIdentity(rule authz.Rule) (needs, excludes bool) {
	asks := func(c authz.Clause) bool { return c.Attribute.Identity() && len(c.Values) > 0 }
	not := func(c authz.Clause) bool { return c.Attribute.Identity() && len(c.Not) > 0 }
	needs = anyClause(rule.When, asks) || len(rule.From) > 0 && !slices.ContainsFunc(rule.From, func(c authz.Clauses) bool { return !anyClause(c, asks) })
	if needs {
		return true, false
	}
	return false, anyClause(rule.When, not) || slices.ContainsFunc(rule.From, func(c authz.Clauses) bool { return anyClause(c, not) && !anyClause(c, asks) })
}

// headers finds ALLOW rules that look at a header and not at who sends it. A header that a verified token is written into is proven.
func headers(w *world, r *report) {
	for _, p := range w.policies {
		if p.Action != authz.Allow || !p.enforced() || len(p.Problems) > 0 {
			continue
		}
		for i, rule := range p.spec.GetRules() {
			if i >= len(p.Rules) || restricts(p.Rules[i]) {
				continue
			}
			for j, when := range rule.GetWhen() {
				name, ok := strings.CutPrefix(strings.ToLower(when.GetKey()), "request.headers[")
				if name = strings.TrimSuffix(name, "]"); ok && !w.written(p, name) {
					r.say(UnprovenHeader, p.object, fmt.Sprintf("spec.rules[%d].when[%d]", i, j),
						"whoever reaches the workload can send %s as it likes, and the rule asks for nothing else of its callers", name)
				}
			}
		}
	}
}

// written reports whether a RequestAuthentication that holds for all workloads of a policy has a header written from verified tokens.
func (w *world) written(p *policy, header string) bool {
	return len(p.classes) > 0 && !slices.ContainsFunc(p.classes, func(c *class) bool {
		return !slices.ContainsFunc(w.tokenRules(), func(j tokenRule) bool {
			if !j.holdsFor(w.set.RootNamespace, c) {
				return false
			}
			for _, rule := range j.spec.GetJwtRules() {
				if strings.EqualFold(rule.GetOutputPayloadToHeader(), header) {
					return true
				}
				for _, out := range rule.GetOutputClaimToHeaders() {
					if strings.EqualFold(out.GetHeader(), header) {
						return true
					}
				}
			}
			return false
		})
	})
}

// tokens finds RequestAuthentications where no policy asks whether there was a token: who shows none passes.
func tokens(w *world, r *report) {
	for _, j := range w.tokenRules() {
		if len(j.spec.GetJwtRules()) == 0 {
			continue
		}
		var open []string
		for i := range w.classes {
			c := &w.classes[i]
			if c.pods[0].Proxied && j.holdsFor(w.set.RootNamespace, c) && !c.looksAtTokens() {
				open = append(open, c.name())
			}
		}
		if open = distinct(open); len(open) > 0 {
			r.sayIf(w.Whole, TokenNotDemanded, j.object, "spec.jwtRules", "who shows no token passes: no policy of %s asks for one (requestPrincipals, or request.auth conditions)", some(open))
		}
	}
}

func (c *class) looksAtTokens() bool {
	return slices.ContainsFunc(c.held, func(p *policy) bool {
		if !p.enforced() || p.Action == authz.Audit {
			return false
		}
		for v := range values(p.spec) {
			if v.aboutTokens() {
				return true
			}
		}
		return false
	})
}
