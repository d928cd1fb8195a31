// Package open says which connections that are open a workload's policies and modes forbid by now, whatever they carry. Envoy's own filters decide about a
// connection at its first bytes, and about a request or a stream at its head, by the rules of that moment. So a filter of ours (closer.c, which
// stock Envoy runs in its WebAssembly sandbox) knows the open connections, and closes those that new rules forbid.
package open

import (
	_ "embed" // of the filter
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"strconv"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Closer is the filter, a WebAssembly module.
//
//go:embed closer.wasm
var Closer []byte

// An expression is written for Closer as its operator and then its operands. It has one of three values, as not all that a rule asks for is known of a
// connection: a request that is allowed may still come on it.
var (
	no    = []byte("N")
	maybe = []byte("M")
	yes   = []byte("Y")
	known = []byte("i") // the client has proved an identity
)

func not(x []byte) []byte {
	switch string(x) {
	case string(yes):
		return no
	case string(no):
		return yes
	}
	return append([]byte("!"), x...)
}

func both(all ...[]byte) []byte { return several('&', yes, no, all) }

func either(all ...[]byte) []byte { return several('|', no, yes, all) }

// several joins expressions: neutral ones and repetitions are left out, and a decisive one is the outcome.
func several(operator byte, neutral, decisive []byte, given [][]byte) []byte {
	var all [][]byte
	seen := map[string]bool{string(neutral): true}
	for _, x := range given {
		if !seen[string(x)] {
			seen[string(x)] = true
			all = append(all, x)
		}
	}
	switch {
	case seen[string(decisive)]:
		return decisive
	case len(all) == 0:
		return neutral
	case len(all) == 1:
		return all[0]
	case len(all) > most:
		return maybe
	}
	out := binary.LittleEndian.AppendUint16([]byte{operator}, uint16(len(all)))
	for _, x := range all {
		out = append(out, x...)
	}
	return out
}

const most = 1<<16 - 1 // operands, and bytes of a pattern

func portIs(number uint32) []byte {
	return binary.LittleEndian.AppendUint16([]byte("d"), uint16(number))
}

func peerIs(pattern string) []byte {
	if len(pattern) > most {
		return maybe
	}
	return append(binary.LittleEndian.AppendUint16([]byte("g"), uint16(len(pattern))), pattern...)
}

// Rules say which connections to a workload are forbidden: for Closer, first of those that carry requests, and then of all others.
func Rules(w *compile.Workload) []byte {
	tcp := make([]authz.Policy, 0, len(w.Policies))
	for _, p := range w.Policies {
		tcp = append(tcp, p.TCP())
	}
	plaintext := both(not(known), strict(w))
	requests, others := either(plaintext, forbidden(w.Policies)), either(plaintext, forbidden(tcp))
	return slices.Concat(binary.LittleEndian.AppendUint32(nil, uint32(len(requests))), requests, others)
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

// forbidden: a DENY rule matches all that the connection can carry, or there are ALLOW policies and no rule of theirs matches anything.
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
		out = append(out, value(c.Attribute, m))
	}
	return either(out...)
}

// value is what is known of one match: of identities and ports all, of addresses and names nothing, nor of requests.
func value(a authz.Attribute, m authz.Match) []byte {
	switch {
	case a == authz.DestinationPort:
		if number, err := strconv.ParseUint(m.Value, 10, 16); err == nil && m.Kind == authz.Port {
			return portIs(uint32(number))
		}
	case !a.Identity():
	case m.Kind == authz.Present:
		return known
	case m.Kind == authz.Exact:
		return peerIs(m.Value)
	case m.Kind == authz.Regexp:
		if patterns, ok := patternsOf(m.Value); ok {
			var out [][]byte
			for _, p := range patterns {
				out = append(out, peerIs(p))
			}
			return either(out...)
		}
	}
	return maybe
}

// mostPatterns bounds the alternatives of one expression, such as trust domains.
const mostPatterns = 64

// patternsOf writes a regular expression for identities as patterns, in which * stands for any characters of a part and + for one or more of them. It is
// false if the expression is of another form. What an identity's parts may consist of has been made sure of in the handshake.
func patternsOf(expression string) ([]string, bool) {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return nil, false
	}
	return patterns(parsed)
}

func patterns(re *syntax.Regexp) ([]string, bool) {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return []string{""}, true
	case syntax.OpLiteral:
		return []string{string(re.Rune)}, re.Flags&syntax.FoldCase == 0
	case syntax.OpStar, syntax.OpPlus:
		if re.Sub[0].Op != syntax.OpCharClass {
			return nil, false
		}
		return []string{map[syntax.Op]string{syntax.OpStar: "*", syntax.OpPlus: "+"}[re.Op]}, true
	case syntax.OpCharClass: // single letters, of alternatives that differ in one
		var out []string
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1] && len(out) <= mostPatterns; r++ {
				out = append(out, string(r))
			}
		}
		return out, len(out) <= mostPatterns
	case syntax.OpCapture:
		return patterns(re.Sub[0])
	case syntax.OpQuest:
		out, ok := patterns(re.Sub[0])
		return append(out, ""), ok
	case syntax.OpAlternate:
		var out []string
		for _, sub := range re.Sub {
			more, ok := patterns(sub)
			if out = append(out, more...); !ok || len(out) > mostPatterns {
				return nil, false
			}
		}
		return out, true
	case syntax.OpConcat:
		out := []string{""}
		for _, sub := range re.Sub {
			ends, ok := patterns(sub)
			if !ok || len(out)*len(ends) > mostPatterns {
				return nil, false
			}
			var longer []string
			for _, begin := range out {
				for _, e := range ends {
					longer = append(longer, begin+e)
				}
			}
			out = longer
		}
		return out, true
	}
	return nil, false
}
