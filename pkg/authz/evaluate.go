package authz

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Request is what a policy can see of a request, or of a connection when HTTP is false.
type Request struct {
	Source          spiffe.ID // zero without mutual TLS
	SourceIP        netip.Addr
	RemoteIP        netip.Addr // of the client that load balancers or trusted proxies have named; zero is SourceIP
	DestinationIP   netip.Addr
	DestinationPort uint32
	SNI             string
	HTTP            bool
	Host            string // with its port, as in :authority
	Method          string
	Path            string              // as sent
	Headers         map[string][]string // lower-case names
	NormalizesPaths bool                // the workload's proxies normalise paths before rules see them
	// Claims are those of the token that the request had, verified as a RequestAuthentication has it; nil without one. Values are as encoding/json decodes
	// them. What a RequestAuthentication takes for a list, as scope, is one.
	Claims map[string]any
}

// Decision is the outcome of a set of policies.
type Decision struct {
	Allowed bool     `json:"allowed"`
	Policy  string   `json:"policy,omitempty"` // rule that decided; empty if none matched
	Reason  string   `json:"reason"`
	Audited []string `json:"audited,omitempty"` // AUDIT rules that matched
	Asked   []string `json:"asked,omitempty"`   // CUSTOM rules that matched, of each authorizer the first: what it says is not known here, and it can only deny
}

// DefaultDeny is the reason of a denial by no rule: what no ALLOW policy matches is denied where there is one.
const DefaultDeny = "no ALLOW policy matches"

// Program is the policies in scope of a workload, made ready to decide about many requests: what can be worked out once has been. It does not change, and
// may be used by several goroutines.
type Program struct{ requests, connections *order }

// order is how policies decide, in Envoy's order: audit, deny, allow, and of several rules that match the one whose name is first. What is ambiguous is a
// rule among those that deny, or audit.
type order struct {
	audit, deny, allow []step
	custom             map[string][]step // by authorizer
	restricted         bool              // some policy is ALLOW, so that what none allows is denied
}

// step is a rule.
type step struct {
	id, reason string
	holds      predicate
}

// Compile makes a program of the policies in scope of a workload.
func Compile(policies []Policy) *Program {
	var requests, connections []Policy
	for _, p := range policies {
		if !p.Ignored && !p.DryRun {
			requests, connections = append(requests, p), append(connections, p.TCP())
		}
	}
	return &Program{orderOf(requests), orderOf(connections)}
}

func orderOf(scope []Policy) *order {
	o := &order{custom: map[string][]step{}}
	for _, p := range scope {
		steps, reason := &o.audit, ""
		switch p.Action {
		case Deny:
			steps, reason = &o.deny, "denied by "+p.Namespace+"/"+p.Name
		case Allow:
			steps, reason = &o.allow, "allowed by "+p.Namespace+"/"+p.Name
			o.restricted = true
		case Custom:
			steps = new([]step)
		}
		for _, r := range p.Rules {
			if !r.Never {
				*steps = append(*steps, step{p.RuleID(r), reason, r.predicate()})
			}
		}
		if p.Action == Custom {
			o.custom[p.Provider] = append(o.custom[p.Provider], *steps...)
		}
	}
	for _, a := range Ambiguities {
		concerned := func(audit bool) bool {
			return slices.ContainsFunc(scope, func(p Policy) bool { return (p.Action == Audit) == audit && a.Concerns(p) })
		}
		of := attributes[a.Attribute].text
		found := step{a.Rule, a.Reason, func(s *seen) bool { return a.Finds(of(s)) }}
		if concerned(true) {
			o.audit = append(o.audit, found)
		}
		if concerned(false) {
			o.deny = append(o.deny, found)
		}
	}
	for _, steps := range append([][]step{o.audit, o.deny, o.allow}, slices.Collect(maps.Values(o.custom))...) {
		slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.id, b.id) })
	}
	return o
}

// Evaluate decides about one request. Who has many makes a Program.
func Evaluate(policies []Policy, req Request) Decision { return Compile(policies).Decide(req) }

// Decide decides about a request or a connection.
func (p *Program) Decide(req Request) Decision {
	if !req.HTTP {
		return p.connections.decide(seenOf(req))
	}
	s := seenOf(req)
	path, ok := SeenPath(req)
	if !ok || !IsAuthority(req.Host) {
		return Decision{Reason: "the path or the authority is malformed"}
	}
	s.Path, s.Host = path, strings.ToLower(req.Host)
	return p.requests.decide(s)
}

func (o *order) decide(s *seen) (d Decision) {
	for _, r := range o.audit {
		if r.holds(s) {
			d.Audited = append(d.Audited, r.id)
		}
	}
	for _, provider := range slices.Sorted(maps.Keys(o.custom)) {
		if i := slices.IndexFunc(o.custom[provider], func(r step) bool { return r.holds(s) }); i >= 0 {
			d.Asked = append(d.Asked, o.custom[provider][i].id)
		}
	}
	for _, r := range o.deny {
		if r.holds(s) {
			d.Policy, d.Reason = r.id, r.reason
			return d
		}
	}
	for _, r := range o.allow {
		if r.holds(s) {
			d.Allowed, d.Policy, d.Reason = true, r.id, r.reason
			return d
		}
	}
	if o.restricted {
		d.Reason = DefaultDeny
		return d
	}
	d.Allowed, d.Reason = true, "no ALLOW policy is in scope"
	return d
}

// SeenPath is the path as rules see it, without the query; it is false for one that the proxies refuse to read. CONNECT has none.
func SeenPath(req Request) (string, bool) {
	if req.Method == "CONNECT" {
		return "", req.Path == ""
	}
	if req.NormalizesPaths {
		return NormalizePath(req.Path)
	}
	path, _, _ := strings.Cut(req.Path, "?")
	return path, WellFormed(req.Path)
}
