package authz

import (
	"net/netip"
	"slices"
	"strconv"
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
	Path            string              // as sent; Evaluate normalises it
	Headers         map[string][]string // lower-case names
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
	req.Path, req.Host = NormalizePath(req.Path), strings.ToLower(req.Host)
	scope := make([]Policy, 0, len(policies))
	path := false
	for _, p := range policies {
		if p.Ignored || p.DryRun {
			continue
		}
		path = path || p.UsesPath()
		if !req.HTTP {
			p = p.TCP()
		}
		scope = append(scope, p)
	}
	for _, p := range scope {
		if id, ok := p.matches(Audit, &req); ok {
			d.Audited = append(d.Audited, id)
		}
	}
	if req.HTTP && path && IsAmbiguous(req.Path) {
		d.Policy, d.Reason = AmbiguousPathRule, "the path is ambiguous and a rule depends on paths"
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
	if c.Attribute.Identity() {
		return !req.Source.IsZero() && matchIdentity(c.Attribute, m, req.Source)
	}
	switch c.Attribute {
	case SourceIP:
		return inCIDR(m.Value, req.SourceIP)
	case DestinationIP:
		return inCIDR(m.Value, req.DestinationIP)
	case DestinationPort:
		return m.Value == strconv.FormatUint(uint64(req.DestinationPort), 10)
	case SNI:
		return m.text(req.SNI)
	case Host:
		return m.text(req.Host)
	case Method:
		return m.text(req.Method)
	case Path:
		return m.text(req.Path)
	case Header:
		// As Envoy does since CVE-2026-26308: a header that is sent twice matches if either line does.
		return slices.ContainsFunc(req.Headers[c.Key], m.text)
	}
	return false
}

func matchIdentity(attr Attribute, m Match, id spiffe.ID) bool {
	switch attr {
	case Namespace:
		return m.text(id.Namespace)
	case TrustDomain:
		return m.text(id.TrustDomain)
	case ServiceAccount:
		return m.Value == id.Namespace+"/"+id.ServiceAccount
	default:
		return m.text(id.String())
	}
}

func inCIDR(cidr string, addr netip.Addr) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Contains(addr.Unmap())
}

func (m Match) text(s string) bool {
	switch m.Kind {
	case Exact:
		return s == m.Value
	case Prefix:
		return strings.HasPrefix(s, m.Value)
	case Suffix:
		return strings.HasSuffix(s, m.Value)
	case Present:
		return s != ""
	case HostSuffix:
		return strings.HasSuffix(hostWithoutPort(s), m.Value)
	case Template:
		return templateMatch(m.Value, s)
	}
	for _, element := range strings.Split(s, ",") {
		element = strings.Trim(element, " \t")
		switch {
		case m.Kind == ElementExact && element == m.Value,
			m.Kind == ElementPrefix && strings.HasPrefix(element, m.Value),
			m.Kind == ElementSuffix && strings.HasSuffix(element, m.Value):
			return true
		}
	}
	return false
}

func hostWithoutPort(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.Trim(host[i+1:], "0123456789") == "" {
		host = host[:i]
	}
	return strings.TrimSuffix(host, ".")
}
