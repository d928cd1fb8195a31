// Package open says which connections and streams that are open a workload's policies and modes, and revocations, forbid by now. Envoy's own filters decide
// about a connection at its first bytes, and about a request or a stream at its head, by the rules of that moment. So a filter of ours (package closer, which
// stock Envoy runs in its WebAssembly sandbox) knows what is open, and ends what new rules forbid: streams by what their requests asked for, and
// connections that carry none by who their clients are.
package open

import (
	"encoding/binary"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// SourceKey is where a filter before it has to note the address of the TCP peer, and rbac.PeerSerialKey the serial number of the client's certificate.
const SourceKey = "bulwark.source"

// What rules are about: of those about the same, the last hold.
const (
	ofPolicies    = 'P'
	ofRevocations = 'R'
)

// Rules say what of a workload is forbidden by its policies and modes.
func Rules(w *compile.Workload) []byte {
	tcp := make([]authz.Policy, 0, len(w.Policies))
	for _, p := range w.Policies {
		tcp = append(tcp, p.TCP())
	}
	plaintext := both(not(proven), strict(w))
	token := no
	if slices.ContainsFunc(w.Policies, func(p authz.Policy) bool { return p.Uses(authz.Claim) || p.Uses(authz.RequestPrincipal) }) {
		token = believed(w.Issuers)
	}
	return written(ofPolicies, token, either(plaintext, forbidden(w.Policies), ambiguous(w.Policies)), either(plaintext, forbidden(tcp)))
}

// Revoked say what is forbidden since its client is revoked.
func Revoked(set compile.Settings, list []revocation.Revocation) []byte {
	var all [][]byte
	for _, r := range list {
		var names [][]byte
		for _, uri := range set.Same(r.Identity) {
			names = append(names, isText(peerURI, authz.Match{Kind: authz.Exact, Value: uri}))
		}
		x := either(names...)
		if r.Serial != "" {
			x = both(x, isText(serial, authz.Match{Kind: authz.Exact, Value: r.SerialBytes()}))
		}
		all = append(all, x)
	}
	return written(ofRevocations, no, either(all...), either(all...))
}

// written are rules for the filter: first those for requests, before which is whether a token is believed, then those for all other connections.
func written(about byte, token, requests, others []byte) []byte {
	return slices.Concat(binary.LittleEndian.AppendUint32([]byte{about}, uint32(len(token)+len(requests))), token, requests, others)
}

// strict is where plaintext is refused.
func strict(w *compile.Workload) []byte {
	var ports, others [][]byte
	for _, p := range w.Ports {
		others = append(others, portIs(p.Number))
		if p.Mode == authz.Strict {
			ports = append(ports, portIs(p.Number))
		}
	}
	if w.Other.Mode == authz.Strict {
		ports = append(ports, not(either(others...)))
	}
	return either(ports...)
}

// ambiguous: what servers read in different ways is denied where a rule that decides looks at it.
func ambiguous(policies []authz.Policy) []byte {
	var out [][]byte
	for _, a := range authz.Ambiguities {
		if !slices.ContainsFunc(policies, func(p authz.Policy) bool { return !p.Ignored && !p.DryRun && p.Action != authz.Audit && a.Concerns(p) }) {
			continue
		}
		of := func(m authz.Match) []byte { return value(authz.Clause{Attribute: a.Attribute}, m) }
		whole := func(expression string) []byte { return of(authz.Match{Kind: authz.Regexp, Value: expression}) }
		found := of(a.Within())
		if a.Alphabet != "" {
			found = either(found, not(whole(a.Alphabet)))
		}
		if a.Clear != "" {
			found = both(not(whole(a.Clear)), found)
		}
		out = append(out, found)
	}
	return either(out...)
}

// forbidden: a DENY rule matches it, or there are ALLOW policies and no rule of theirs does.
func forbidden(policies []authz.Policy) []byte {
	var denied, allowed [][]byte
	restricted := false
	for _, p := range policies {
		if p.Ignored || p.DryRun {
			continue
		}
		restricted = restricted || p.Action == authz.Allow
		for _, r := range p.Rules {
			switch p.Action {
			case authz.Deny:
				denied = append(denied, rule(r))
			case authz.Allow:
				allowed = append(allowed, rule(r))
			}
		}
	}
	if restricted {
		denied = append(denied, not(either(allowed...)))
	}
	return either(denied...)
}

func rule(r authz.Rule) []byte {
	if r.Never {
		return no
	}
	return both(anyOf(r.From), anyOf(r.To), allOf(r.When))
}

func anyOf(alternatives []authz.Clauses) []byte {
	if len(alternatives) == 0 {
		return yes
	}
	var out [][]byte
	for _, a := range alternatives {
		out = append(out, allOf(a))
	}
	return either(out...)
}

func allOf(clauses authz.Clauses) []byte {
	var out [][]byte
	for _, c := range clauses {
		if len(c.Values) > 0 {
			out = append(out, values(c, c.Values))
		}
		if len(c.Not) > 0 {
			out = append(out, not(values(c, c.Not)))
		}
	}
	return both(out...)
}

func values(c authz.Clause, matches []authz.Match) []byte {
	var out [][]byte
	for _, m := range matches {
		out = append(out, value(c, m))
	}
	return either(out...)
}
