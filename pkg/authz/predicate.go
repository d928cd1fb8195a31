package authz

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// seen is a request as rules see it.
type seen struct {
	Request
	peer string // the URI of the peer's certificate
}

func seenOf(req Request) *seen {
	s := &seen{Request: req}
	if !req.Source.IsZero() {
		s.peer = req.Source.String()
	}
	s.SNI, s.SourceIP, s.DestinationIP, s.RemoteIP = strings.ToLower(req.SNI), req.SourceIP.Unmap(), req.DestinationIP.Unmap(), req.RemoteIP.Unmap()
	if !s.RemoteIP.IsValid() {
		s.RemoteIP = s.SourceIP
	}
	return s
}

// predicate says whether something holds of a request.
type predicate func(*seen) bool

// text is an attribute's text of a request, address its address.
type (
	text    func(*seen) string
	address func(*seen) netip.Addr
)

func always(*seen) bool { return true }

// predicate says whether the rule holds.
func (r Rule) predicate() predicate {
	if r.Never {
		return func(*seen) bool { return false }
	}
	return all([]predicate{anyOf(r.From), anyOf(r.To), r.When.predicate()})
}

func anyOf(alternatives []Clauses) predicate {
	if len(alternatives) == 0 {
		return always
	}
	var some []predicate
	for _, a := range alternatives {
		some = append(some, a.predicate())
	}
	if len(some) == 1 {
		return some[0]
	}
	return func(s *seen) bool {
		for _, p := range some {
			if p(s) {
				return true
			}
		}
		return false
	}
}

func (clauses Clauses) predicate() predicate {
	var each []predicate
	for _, c := range clauses {
		each = append(each, c.predicate())
	}
	return all(each)
}

func all(of []predicate) predicate {
	switch len(of) {
	case 0:
		return always
	case 1:
		return of[0]
	}
	return func(s *seen) bool {
		for _, p := range of {
			if !p(s) {
				return false
			}
		}
		return true
	}
}

// predicate says whether the clause holds: any of its values matches, if it has some, and none of those that must not.
func (c *Clause) predicate() predicate {
	var both []predicate
	if len(c.Values) > 0 {
		both = append(both, c.any(c.Values))
	}
	if len(c.Not) > 0 {
		not := c.any(c.Not)
		both = append(both, func(s *seen) bool { return !not(s) })
	}
	return all(both)
}

// any says whether one of the matches is of the request.
func (c *Clause) any(matches []Match) predicate {
	switch a := attributes[c.Attribute]; {
	case a.address != nil:
		networks := prefixes(matches)
		return func(s *seen) bool {
			at := a.address(s)
			return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(at) })
		}
	case c.Attribute == DestinationPort:
		ports := exact(matches, Port)
		return func(s *seen) bool { return ports[strconv.FormatUint(uint64(s.DestinationPort), 10)] }
	case c.Attribute == Header: // as Envoy does since CVE-2026-26308: one that is sent twice matches if either line does
		one := matcher(matches)
		return func(s *seen) bool { return slices.ContainsFunc(s.Headers[c.Key], one) }
	case c.Attribute == RequestPrincipal:
		return anyPrincipal(matches)
	case c.Attribute == Claim:
		one, path := claimed(matches), ClaimPath(c.Key)
		return func(s *seen) bool { return one(claimAt(s.Claims, path)) }
	case a.peer:
		one := matcher(matches)
		return func(s *seen) bool { return s.peer != "" && one(s.peer) }
	default:
		one := matcher(matches)
		return func(s *seen) bool { return one(a.text(s)) }
	}
}

// prefixes are the networks among matches.
func prefixes(matches []Match) (out []netip.Prefix) {
	for _, m := range matches {
		if p, err := netip.ParsePrefix(m.Value); m.Kind == CIDR && err == nil {
			out = append(out, p)
		}
	}
	return out
}

// exact are the texts that a kind of matches, of which each is a whole text, match.
func exact(matches []Match, kind Kind) map[string]bool {
	out := map[string]bool{}
	for _, m := range matches {
		if m.Kind == kind {
			out[m.Value] = true
		}
	}
	return out
}

// matcher says whether a text is matched by one of several matches. Many whole texts are found in no more time than a few.
func matcher(matches []Match) func(string) bool {
	var others []func(string) bool
	for _, m := range matches {
		if m.Kind != Exact {
			others = append(others, m.matcher())
		}
	}
	whole := exact(matches, Exact)
	if len(matches) == 1 {
		return matches[0].matcher()
	}
	return func(s string) bool {
		if whole[s] {
			return true
		}
		for _, f := range others {
			if f(s) {
				return true
			}
		}
		return false
	}
}

// matcher compares a value with a text.
func (m Match) matcher() func(string) bool {
	switch m.Kind {
	case Exact:
		return func(s string) bool { return s == m.Value }
	case Prefix:
		return func(s string) bool { return strings.HasPrefix(s, m.Value) }
	case Suffix:
		return func(s string) bool { return strings.HasSuffix(s, m.Value) }
	case Present:
		return func(s string) bool { return s != "" }
	case Regexp:
		if re, err := regexp.Compile("^(?:" + m.Value + ")$"); err == nil {
			return re.MatchString
		}
	}
	return func(string) bool { return false }
}
