// Package authz is what Bulwark means by an AuthorizationPolicy and a PeerAuthentication: an intermediate form, made
// from Istio's types, and its evaluation in Go. Pilot renders the same form as Envoy RBAC; the two interpreters are held
// together by a test that runs random requests through both.
package authz

import (
	"cmp"
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Action is what a matching policy does.
type Action string

// The actions. What a Custom policy matches is denied unless its external authorizer allows it, too.
const (
	Allow  Action = "ALLOW"
	Deny   Action = "DENY"
	Audit  Action = "AUDIT"
	Custom Action = "CUSTOM"
)

// Meta is what of a policy's metadata matters.
type Meta struct {
	Namespace, Name string
	Created         time.Time
	DryRun          bool // annotation istio.io/dry-run
}

// Policy is an AuthorizationPolicy in the intermediate form. An Allow policy without rules allows nothing.
type Policy struct {
	Meta
	Action   Action
	Selector map[string]string // empty: every workload in scope
	Services []string          // of its namespace, that it targets: it holds for workloads behind one of them; empty: for all that it selects
	Ignored  bool              // it targets or selects something that is no workload, so it touches none
	Rules    []Rule
	Provider string    // the external authorizer that a Custom policy has asked
	Warnings []Problem // what is enforced as it is written, but may not be what its author wants
}

// Rule matches a request that meets one of From (or From is empty), one of To (or To is empty), and all of When.
type Rule struct {
	Index int // in the AuthorizationPolicy
	From  []Clauses
	To    []Clauses
	When  Clauses
	Never bool // an Allow rule that asks for something Bulwark cannot check: it matches nothing
}

// Clauses must all hold.
type Clauses []Clause

// Clause holds when one of Values matches the attribute and none of Not does. Values may be empty: no demand.
type Clause struct {
	Attribute Attribute
	Key       string // name of the header, or of the claim, as [name][name within it]
	Values    []Match
	Not       []Match
	// Members are those of the mesh outside of whom no peer meets Values. Nil: that cannot be told.
	Members []Member
	// Asked is the field of the policy with the values as they are written, for people.
	Asked Asked
}

// Asked is a field of a policy, such as spec.rules[0].to[0].operation.paths, and its values as they are written.
type Asked struct {
	Field       string
	Values, Not []Written
}

// Written is a value of a policy, and the matches that it has become, any of which will do.
type Written struct {
	Text    string
	Matches []Match
}

// Member is a service account of the mesh, or, without an account, every one of a namespace.
type Member struct{ Namespace, Account string }

// Admits reports whether a service account is the member or one of those that it stands for.
func (m Member) Admits(namespace, account string) bool {
	return m.Namespace == namespace && (m.Account == "" || m.Account == account)
}

// Compare orders members by their names.
func (m Member) Compare(other Member) int { return cmp.Compare(m.String(), other.String()) }

func (m Member) String() string {
	if m.Account == "" {
		return m.Namespace + "/*"
	}
	return m.Namespace + "/" + m.Account
}

// Members returns those of the mesh outside of whom no peer can match the rule. It is false if that cannot be told: the rule admits
// peers without identity, or names the identities by something other than their names.
func (r Rule) Members() ([]Member, bool) {
	if r.Never {
		return nil, true
	}
	if m, ok := r.When.members(); ok {
		return m, true
	}
	var out []Member
	for _, from := range r.From {
		m, ok := from.members()
		if !ok {
			return nil, false
		}
		out = append(out, m...)
	}
	return out, len(r.From) > 0
}

func (clauses Clauses) members() ([]Member, bool) {
	for _, c := range clauses {
		if c.Members != nil {
			return c.Members, true
		}
	}
	return nil, false
}

// Attribute is a property of a request or of its connection.
type Attribute string

// The attributes; those of HTTP are told by HTTPOnly.
const (
	Principal       Attribute = "principal"
	Namespace       Attribute = "namespace"
	ServiceAccount  Attribute = "serviceAccount"
	TrustDomain     Attribute = "trustDomain"
	SourceIP        Attribute = "sourceIP" // of the TCP peer
	RemoteIP        Attribute = "remoteIP" // of the client that load balancers or trusted proxies have named; there is none if none is trusted
	DestinationIP   Attribute = "destinationIP"
	DestinationPort Attribute = "destinationPort" // the workload's port
	SNI             Attribute = "sni"
	Host            Attribute = "host"
	Method          Attribute = "method"
	Path            Attribute = "path" // without query
	Header          Attribute = "header"
	// RequestPrincipal and Claim are of the request's verified token. A value of RequestPrincipal is compared in parts; see IssuerSubject.
	RequestPrincipal Attribute = "requestPrincipal" // <issuer>/<subject>
	Claim            Attribute = "claim"
)

// HTTPOnly reports whether the attribute exists in HTTP alone.
func (a Attribute) HTTPOnly() bool { return attributes[a].http }

// Identity reports whether the attribute comes from the peer's certificate. Its matches are of the whole SPIFFE URI.
func (a Attribute) Identity() bool { return attributes[a].peer }

// Kind is how a value is compared with the text of an attribute.
type Kind string

// The kinds.
const (
	Exact   Kind = "exact"
	Prefix  Kind = "prefix"
	Suffix  Kind = "suffix"
	Present Kind = "present" // any text but the empty one
	Regexp  Kind = "regexp"  // of RE2, over the whole text
	CIDR    Kind = "cidr"
	Port    Kind = "port"
)

// AnyByte is how a Regexp is written to match any byte, whether or not the text is UTF-8. Go reads it so; where the text is
// not known to be UTF-8, RE2 calls the same \C.
const AnyByte = `(?s:.)`

const anyBytes = AnyByte + `*`

// Match is one value, in the form in which it is compared.
type Match struct {
	Kind  Kind
	Value string
}

// RuleID names a rule as tools of the Istio ecosystem expect it.
func (p *Policy) RuleID(r Rule) string { return istiocompat.PolicyRule(p.Namespace, p.Name, r.Index) }

// Problem says why a field cannot be enforced.
type Problem struct {
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

func (p Problem) Error() string { return p.Field + ": " + p.Reason }

// TCP returns the policy as it holds for connections that are not HTTP: an Allow rule that asks for something of HTTP is
// dropped, any other rule loses what it asks of HTTP and so matches more (Istio's rule, on the safe side).
func (p *Policy) TCP() Policy {
	out := *p
	out.Rules = nil
	for _, r := range p.Rules {
		if p.Action == Allow && r.usesHTTP() {
			continue
		}
		r.From, r.To, r.When = withoutHTTP(r.From), withoutHTTP(r.To), dropHTTP(r.When)
		out.Rules = append(out.Rules, r)
	}
	return out
}

// AdmitsTCP reports whether policies in scope of a workload may let anything through at one of its ports that is not HTTP. It is false only if that is
// certain: each ALLOW rule asks for something of HTTP, or a DENY rule asks for nothing else. Port 0 is any port that rules do not name.
func AdmitsTCP(policies []Policy, port uint32) bool {
	return admits(policies, port, func(a Attribute) bool { return a == DestinationPort })
}

// AdmitsStrangers is AdmitsTCP for a connection in plaintext, whose client has no identity.
func AdmitsStrangers(policies []Policy, port uint32) bool {
	return admits(policies, port, func(a Attribute) bool { return a == DestinationPort || a.Identity() })
}

// admits reports whether policies may let a connection to a port through of which some attributes are known: the port and, if its client has none, the identity.
func admits(policies []Policy, port uint32, known func(Attribute) bool) bool {
	restricted, admitted := false, false
	for _, p := range policies {
		if p.Ignored || p.DryRun || p.Action == Audit || p.Action == Custom {
			continue
		}
		restricted = restricted || p.Action == Allow
		for _, r := range p.TCP().Rules {
			maybe, certain := r.atPort(port, known)
			if p.Action == Deny && certain {
				return false
			}
			admitted = admitted || p.Action == Allow && maybe
		}
	}
	return admitted || !restricted
}

// atPort says whether a rule for connections may match some that come to a port, and whether it matches all of them.
func (r Rule) atPort(port uint32, known func(Attribute) bool) (maybe, certain bool) {
	if r.Never {
		return false, false
	}
	of := seenOf(Request{DestinationPort: port})
	maybe, certain = true, true
	for _, alternatives := range [][]Clauses{r.From, r.To, {r.When}} {
		may, sure := len(alternatives) == 0, len(alternatives) == 0
		for _, clauses := range alternatives {
			m, s := true, true
			for _, c := range clauses {
				holds := !known(c.Attribute) || c.predicate()(of)
				m, s = m && holds, s && holds && known(c.Attribute)
			}
			may, sure = may || m, sure || s
		}
		maybe, certain = maybe && may, certain && sure
	}
	return maybe, certain
}

// ByIdentity reports whether who the peer is decides alone, and wholly, about connections that are not HTTP: no DENY or CUSTOM policy has a word, and each ALLOW rule
// asks for one property of the peer's identity, or for nothing.
func ByIdentity(policies []Policy) bool {
	for _, p := range policies {
		if p.Ignored || p.DryRun || p.Action == Audit {
			continue
		}
		for _, r := range p.TCP().Rules {
			if r.Never {
				continue
			}
			if p.Action != Allow || len(r.When) > 0 || slices.ContainsFunc(r.To, func(to Clauses) bool { return len(to) > 0 }) {
				return false
			}
			for _, from := range r.From {
				if len(from) != 1 || !from[0].Attribute.Identity() || len(from[0].Not) > 0 {
					return false
				}
			}
		}
	}
	return true
}

// Uses reports whether a rule of the policy looks at an attribute.
func (p *Policy) Uses(a Attribute) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.uses(func(of Attribute) bool { return of == a }) })
}

func (r Rule) usesHTTP() bool { return r.uses(Attribute.HTTPOnly) }

func (r Rule) uses(is func(Attribute) bool) bool {
	lists := append(append([]Clauses{r.When}, r.From...), r.To...)
	for _, clauses := range lists {
		for _, c := range clauses {
			if is(c.Attribute) {
				return true
			}
		}
	}
	return false
}

func withoutHTTP(alternatives []Clauses) []Clauses {
	var out []Clauses
	for _, a := range alternatives {
		out = append(out, dropHTTP(a))
	}
	return out
}

func dropHTTP(clauses Clauses) Clauses {
	var out Clauses
	for _, c := range clauses {
		if !c.Attribute.HTTPOnly() {
			out = append(out, c)
		}
	}
	return out
}
