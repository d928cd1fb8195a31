// Package authz is what Bulwark means by an AuthorizationPolicy and a PeerAuthentication: an intermediate form, made
// from Istio's types, and its evaluation in Go. Pilot renders the same form as Envoy RBAC; the two interpreters are held
// together by a test that runs random requests through both.
package authz

import (
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Action is what a matching policy does.
type Action string

// The actions; CUSTOM does not appear: Bulwark cannot enforce it and turns it into Deny.
const (
	Allow Action = "ALLOW"
	Deny  Action = "DENY"
	Audit Action = "AUDIT"
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
	Ignored  bool              // it targets something that is no workload (targetRefs), so it touches none
	Rules    []Rule
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
	Key       string // name of the header
	Values    []Match
	Not       []Match
}

// Attribute is a property of a request or of its connection.
type Attribute string

// The attributes; those of HTTP are told by HTTPOnly.
const (
	Principal       Attribute = "principal" // the peer's whole SPIFFE URI
	Namespace       Attribute = "namespace"
	ServiceAccount  Attribute = "serviceAccount"
	TrustDomain     Attribute = "trustDomain"
	SourceIP        Attribute = "sourceIP" // of the TCP peer
	DestinationIP   Attribute = "destinationIP"
	DestinationPort Attribute = "destinationPort" // the workload's port
	SNI             Attribute = "sni"
	Host            Attribute = "host"
	Method          Attribute = "method"
	Path            Attribute = "path" // normalised, without query
	Header          Attribute = "header"
)

// HTTPOnly reports whether the attribute exists in HTTP alone.
func (a Attribute) HTTPOnly() bool { return a == Host || a == Method || a == Path || a == Header }

// Identity reports whether the attribute comes from the peer's certificate.
func (a Attribute) Identity() bool {
	return a == Principal || a == Namespace || a == ServiceAccount || a == TrustDomain
}

// Kind is how a value matches.
type Kind string

// The kinds. Element kinds look at each element of a comma-joined header, so that a second value cannot hide a first.
const (
	Exact         Kind = "exact"
	Prefix        Kind = "prefix"
	Suffix        Kind = "suffix"
	Present       Kind = "present"
	HostSuffix    Kind = "hostSuffix" // suffix of the host, whatever its port
	Template      Kind = "template"   // path with {*} and {**}
	CIDR          Kind = "cidr"
	Port          Kind = "port"
	Account       Kind = "account" // "<namespace>/<service account>"
	ElementExact  Kind = "elementExact"
	ElementPrefix Kind = "elementPrefix"
	ElementSuffix Kind = "elementSuffix"
)

// Match is one value.
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

// UsesPath reports whether a rule looks at the path, where ambiguous spellings must be refused.
func (p *Policy) UsesPath() bool {
	for _, r := range p.Rules {
		if r.uses(func(a Attribute) bool { return a == Path }) {
			return true
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
