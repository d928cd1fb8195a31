package authz

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Request is what a policy can see of a request, or of a connection when HTTP is false.
type Request struct {
	Source          spiffe.ID // zero without mutual TLS
	SourceIP        netip.Addr
	DestinationIP   netip.Addr
	DestinationPort uint32
	SNI             string
	HTTP            bool
	Host            string // with its port, as in :authority
	Method          string
	Path            string              // as sent
	Headers         map[string][]string // lower-case names
	NormalizesPaths bool                // the workload's proxies normalise paths before rules see them
}

// Decision is the outcome of a set of policies.
type Decision struct {
	Allowed bool     `json:"allowed"`
	Policy  string   `json:"policy,omitempty"` // rule that decided; empty if none matched
	Reason  string   `json:"reason"`
	Audited []string `json:"audited,omitempty"` // AUDIT rules that matched
}

// Evaluate decides a request by the policies in scope of a workload, in Envoy's order: audit, deny, allow.
func Evaluate(policies []Policy, req Request) Decision {
	var d Decision
	if req.HTTP {
		path, ok := seenPath(req)
		if !ok || !IsAuthority(req.Host) {
			d.Reason = "the path or the authority is malformed"
			return d
		}
		req.Path, req.Host = path, strings.ToLower(req.Host)
	}
	var scope []Policy
	for _, p := range policies {
		if p.Ignored || p.DryRun {
			continue
		}
		if !req.HTTP {
			p = p.TCP()
		}
		scope = append(scope, p)
	}
	audits, decides := ambiguities(scope, &req)
	d.Audited = audits
	for _, p := range scope {
		if id, ok := p.matches(Audit, &req); ok {
			d.Audited = append(d.Audited, id)
		}
	}
	if len(decides) > 0 {
		d.Policy, d.Reason = decides[0].Rule, decides[0].Reason
		return d
	}
	for _, p := range scope {
		if id, ok := p.matches(Deny, &req); ok {
			d.Policy, d.Reason = id, "denied by "+p.Namespace+"/"+p.Name
			return d
		}
	}
	restricted := false
	for _, p := range scope {
		restricted = restricted || p.Action == Allow
		if id, ok := p.matches(Allow, &req); ok {
			d.Allowed, d.Policy, d.Reason = true, id, "allowed by "+p.Namespace+"/"+p.Name
			return d
		}
	}
	if restricted {
		d.Reason = "no ALLOW policy matches"
		return d
	}
	d.Allowed, d.Reason = true, "no ALLOW policy is in scope"
	return d
}

// seenPath is the path as rules see it, without the query; it is false for one that the proxies refuse to read. CONNECT has none.
func seenPath(req Request) (string, bool) {
	if req.Method == "CONNECT" {
		return "", req.Path == ""
	}
	if req.NormalizesPaths {
		return NormalizePath(req.Path)
	}
	path, _, _ := strings.Cut(req.Path, "?")
	return path, WellFormed(req.Path)
}

// ambiguities are the rules by which a request is audited or denied since servers read it in different ways.
func ambiguities(scope []Policy, req *Request) (audits []string, denies []Ambiguity) {
	for _, a := range Ambiguities {
		if !a.Finds(attributes[a.Attribute].of(req, "")[0]) {
			continue
		}
		uses := func(action bool) bool {
			return slices.ContainsFunc(scope, func(p Policy) bool { return (p.Action == Audit) == action && a.Concerns(p) })
		}
		if uses(true) {
			audits = append(audits, a.Rule)
		}
		if uses(false) {
			denies = append(denies, a)
		}
	}
	return audits, denies
}

func (p *Policy) matches(action Action, req *Request) (string, bool) {
	if p.Action != action {
		return "", false
	}
	for _, r := range p.Rules {
		if !r.Never && anyOf(r.From, req) && anyOf(r.To, req) && r.When.hold(req) {
			return p.RuleID(r), true
		}
	}
	return "", false
}

func anyOf(alternatives []Clauses, req *Request) bool {
	if len(alternatives) == 0 {
		return true
	}
	for _, a := range alternatives {
		if a.hold(req) {
			return true
		}
	}
	return false
}

func (cs Clauses) hold(req *Request) bool {
	for _, c := range cs {
		if !c.holds(req) {
			return false
		}
	}
	return true
}

func (c *Clause) holds(req *Request) bool {
	if len(c.Values) > 0 && !c.any(c.Values, req) {
		return false
	}
	return !c.any(c.Not, req)
}

func (c *Clause) any(matches []Match, req *Request) bool {
	for _, m := range matches {
		if c.match(m, req) {
			return true
		}
	}
	return false
}

func (c *Clause) match(m Match, req *Request) bool {
	return slices.ContainsFunc(attributes[c.Attribute].of(req, c.Key), m.text)
}

// text compares a value with the text of an attribute.
func (m Match) text(s string) bool {
	switch m.Kind {
	case Exact, Port:
		return s == m.Value
	case Prefix:
		return strings.HasPrefix(s, m.Value)
	case Suffix:
		return strings.HasSuffix(s, m.Value)
	case Present:
		return s != ""
	case Regexp:
		re, err := regexp.Compile("^(?:" + m.Value + ")$")
		return err == nil && re.MatchString(s)
	case CIDR:
		p, err := netip.ParsePrefix(m.Value)
		addr, bad := netip.ParseAddr(s)
		return err == nil && bad == nil && p.Contains(addr.Unmap())
	}
	return false
}
