package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Explanation says of every policy in scope what it has to do with a decision.
type Explanation struct {
	Decision
	Policies []PolicyOutcome `json:"policies"`
	// DryRun is what would be decided if the policies that are tried out were enforced; nil if none is.
	DryRun *Decision `json:"dryRun,omitempty"`
}

// PolicyOutcome is a policy, with what became of each of its rules.
type PolicyOutcome struct {
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	Action    Action        `json:"action"`
	DryRun    bool          `json:"dryRun,omitempty"`
	Rules     []RuleOutcome `json:"rules"`
}

// RuleOutcome says whether a rule matches a request, and if not, why.
type RuleOutcome struct {
	ID      string   `json:"id"`
	Index   int      `json:"index"`
	Matches bool     `json:"matches"`
	Held    int      `json:"held"`              // clauses that hold
	Missed  []Missed `json:"missed,omitempty"`  // those that do not, of the alternatives that come nearest
	Skipped string   `json:"skipped,omitempty"` // why the rule is not asked at all
	Wider   string   `json:"wider,omitempty"`   // what of the rule is left out, so that it matches more
}

// Missed is a clause that does not hold.
type Missed struct {
	Field string   `json:"field"`
	Not   bool     `json:"not,omitempty"` // the request has what it must not have
	Asked []string `json:"asked"`         // as written in the policy
	Had   []string `json:"had"`           // as rules see the request; empty if it has nothing of the kind
}

// Explain decides as Evaluate does and says why.
func Explain(policies []Policy, req Request) Explanation {
	out := Explanation{Decision: Evaluate(policies, req), Policies: []PolicyOutcome{}}
	s := seenOf(req)
	if req.HTTP {
		s.Path, _ = SeenPath(req)
		s.Host = strings.ToLower(req.Host)
	}
	tried := slices.Clone(policies)
	for i, p := range policies {
		if p.Ignored {
			continue
		}
		out.Policies = append(out.Policies, p.outcome(s))
		if p.DryRun {
			tried[i].DryRun = false
			out.DryRun = &Decision{}
		}
	}
	if out.DryRun != nil {
		*out.DryRun = Evaluate(tried, req)
	}
	return out
}

func (p *Policy) outcome(s *seen) PolicyOutcome {
	out := PolicyOutcome{Namespace: p.Namespace, Name: p.Name, Action: p.Action, DryRun: p.DryRun, Rules: []RuleOutcome{}}
	for _, r := range p.Rules {
		o := RuleOutcome{ID: p.RuleID(r), Index: r.Index}
		switch {
		case r.Never:
			o.Skipped = "it asks for something that cannot be enforced, so it admits nothing"
		case !s.HTTP && r.usesHTTP() && p.Action == Allow:
			o.Skipped = "it asks for something of HTTP, which a connection has not, so it admits none"
		default:
			if !s.HTTP && r.usesHTTP() {
				r.From, r.To, r.When = withoutHTTP(r.From), withoutHTTP(r.To), dropHTTP(r.When)
				o.Wider = "what it asks of HTTP is left out, as a connection has nothing of it"
			}
			o.ask(s, r)
		}
		out.Rules = append(out.Rules, o)
	}
	return out
}

// ask fills in which clauses hold.
func (o *RuleOutcome) ask(s *seen, r Rule) {
	for _, clauses := range []Clauses{nearest(s, r.From), nearest(s, r.To), r.When} {
		missed := clauses.missed(s)
		o.Held, o.Missed = o.Held+len(clauses)-len(missed), append(o.Missed, missed...)
	}
	o.Matches = len(o.Missed) == 0
}

// nearest is the alternative of which the fewest clauses do not hold; none, of which all hold, if there is no alternative.
func nearest(s *seen, alternatives []Clauses) (best Clauses) {
	least := -1
	for _, a := range alternatives {
		if n := len(a.missed(s)); least < 0 || n < least {
			best, least = a, n
		}
	}
	return best
}

func (clauses Clauses) missed(s *seen) (out []Missed) {
	for i := range clauses {
		if m, missed := clauses[i].missed(s); missed {
			out = append(out, m)
		}
	}
	return out
}

func (c *Clause) missed(s *seen) (Missed, bool) {
	if len(c.Values) > 0 && !c.any(c.Values)(s) {
		return Missed{Field: c.Asked.Field, Asked: texts(c.Asked.Values), Had: c.had(s)}, true
	}
	if len(c.Not) == 0 || !c.any(c.Not)(s) {
		return Missed{}, false
	}
	m := Missed{Field: NotField(c.Asked.Field), Not: true, Asked: []string{}, Had: c.had(s)}
	for _, w := range c.Asked.Not {
		if c.any(w.Matches)(s) {
			m.Asked = append(m.Asked, w.Text)
		}
	}
	return m, true
}

func texts(of []Written) []string {
	out := make([]string, 0, len(of))
	for _, w := range of {
		out = append(out, w.Text)
	}
	return out
}

// NotField is the field of the values that must not match beside the field of those that must: notPaths beside paths.
func NotField(field string) string {
	i := strings.LastIndexByte(field, '.') + 1
	if i == len(field) {
		return field
	}
	return field[:i] + "not" + strings.ToUpper(field[i:i+1]) + field[i+1:]
}

// had is what a request has of the clause's attribute: several texts of a header that is sent twice, and none of what it has not.
func (c *Clause) had(s *seen) []string {
	one := func(text string) []string {
		if text == "" {
			return []string{}
		}
		return []string{text}
	}
	address := func(a netip.Addr) []string {
		if !a.IsValid() {
			return []string{}
		}
		return []string{a.String()}
	}
	switch a := attributes[c.Attribute]; {
	case a.peer:
		return one(strings.TrimPrefix(s.peer, "spiffe://"))
	case a.address != nil:
		return address(a.address(s))
	case a.text != nil:
		return one(a.text(s))
	case c.Attribute == DestinationPort:
		return one(strconv.FormatUint(uint64(s.DestinationPort), 10))
	case c.Attribute == Header:
		return append([]string{}, s.Headers[c.Key]...)
	case c.Attribute == RequestPrincipal && s.Claims != nil:
		return []string{fmt.Sprintf("%v/%v", s.Claims["iss"], s.Claims["sub"])}
	case c.Attribute == Claim:
		return claimTexts(claimAt(s.Claims, ClaimPath(c.Key)))
	}
	return []string{}
}

// claimTexts are the texts of a claim, each of those of a list.
func claimTexts(value any) (out []string) {
	switch v := value.(type) {
	case nil:
		return []string{}
	case []any:
		for _, one := range v {
			out = append(out, claimTexts(one)...)
		}
		return out
	}
	return []string{fmt.Sprint(value)}
}
