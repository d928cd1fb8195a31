// Package space divides all requests that there can be by what policies tell apart, and says for each part how the policies decide. It is exact: attributes
// are taken apart into kinds of values, of which no policy tells two of the same kind apart, and of each kind there is an example.
package space

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Axis is something by which policies tell requests apart: who asks, or an attribute, of headers one of each name.
type Axis struct {
	Attribute authz.Attribute // Principal stands for all that comes from a peer's certificate
	Key       string          // name of a header, and the like
	terms     []term
	kinds     []Kind
	ordinary  set // kinds that are no special ones
}

// Kind is values that no policy tells apart.
type Kind struct {
	Example []string // one value of the kind; several of a header that is sent on several lines; none for what has none
	Special string   // what the kind is if no value of a policy says so
	in      set      // terms that match it
}

// term is a value of a policy.
type term struct {
	text    string // as it is written
	matches []authz.Match
	kinds   set
}

// Specials.
const (
	NoIdentity = "no identity"
	Ambiguous  = "ambiguous" // servers read it in different ways
	Absent     = "none"
	Tunnel     = "CONNECT"
)

// axes finds what policies tell apart.
type axes struct {
	list    []*Axis
	index   map[string]int
	terms   []map[string]int // of each axis, by their matches
	domains string           // trust domains of the mesh, as an expression
}

func (a *axes) of(attribute authz.Attribute, key string) int {
	if attribute.Identity() {
		attribute, key = authz.Principal, ""
	}
	name := string(attribute) + "\x00" + key
	if i, ok := a.index[name]; ok {
		return i
	}
	a.index[name] = len(a.list)
	a.list = append(a.list, &Axis{Attribute: attribute, Key: key})
	a.terms = append(a.terms, map[string]int{})
	return len(a.list) - 1
}

// termsOf are the numbers of a clause's values on its axis, and of those that must not match.
func (a *axes) termsOf(c authz.Clause) (axis int, values, not []int) {
	axis = a.of(c.Attribute, c.Key)
	return axis, a.number(axis, c.Attribute, c.Values, c.Asked.Values), a.number(axis, c.Attribute, c.Not, c.Asked.Not)
}

// clientWords tell what is said of who asks apart; a principal is written as it is.
var clientWords = map[authz.Attribute]string{authz.Namespace: "namespace ", authz.ServiceAccount: "account ", authz.TrustDomain: "trust domain "}

// number numbers matches, together where they are one value as it is written.
func (a *axes) number(axis int, of authz.Attribute, matches []authz.Match, written []authz.Written) (out []int) {
	n := 0
	for _, w := range written {
		n += len(w.Matches)
	}
	if n != len(matches) {
		written = nil
		for _, m := range matches {
			written = append(written, authz.Written{Text: m.Value, Matches: []authz.Match{m}})
		}
	}
	for _, w := range written {
		key := fmt.Sprint(w.Matches)
		i, ok := a.terms[axis][key]
		if !ok {
			i = len(a.list[axis].terms)
			a.terms[axis][key] = i
			a.list[axis].terms = append(a.list[axis].terms, term{text: clientWords[of] + w.Text, matches: w.Matches})
		}
		out = append(out, i)
	}
	return out
}

// divide finds the kinds of values of each axis.
func (a *axes) divide() error {
	for _, x := range a.list {
		var err error
		switch {
		case x.ofAddresses():
			x.divideAddresses()
		default:
			err = x.divideTexts(a.domains)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", x.name(), err)
		}
		x.ordinary = newSet(len(x.kinds))
		for i, k := range x.kinds {
			if k.Special == "" || k.Special == NoIdentity || k.Special == Absent {
				x.ordinary.add(i)
			}
		}
		for t := range x.terms {
			x.terms[t].kinds = newSet(len(x.kinds))
			for i, k := range x.kinds {
				if k.in.has(t) {
					x.terms[t].kinds.add(i)
				}
			}
		}
	}
	return nil
}

func (x *Axis) name() string {
	if x.Key != "" {
		return string(x.Attribute) + " " + x.Key
	}
	return string(x.Attribute)
}

// domain are the texts that an attribute can have, as languages which a text must be in and must not be in.
func (x *Axis) domain(domains string) (must, not []string) {
	const label = `[a-z0-9](?:[-a-z0-9]*[a-z0-9])?`
	switch x.Attribute {
	case authz.Principal:
		return []string{"spiffe://" + domains + "/ns/" + label + "/sa/" + label + `(?:\.` + label + ")*"}, nil
	case authz.Path:
		must = []string{"/" + authz.AnyByte + "*"}
	case authz.Method:
		must = []string{"[!#$%&'*+.^_|~0-9A-Za-z\\x60-]+"}
	case authz.Host:
		must = []string{authz.Authority, "[^A-Z]*"}
	case authz.SNI:
		must = []string{`[^A-Z\x00-\x20\x7f]*`}
	case authz.RequestPrincipal:
		const part = `[^\x00-\x1f\x7f]+`
		must = []string{part + authz.BetweenIssuerAndSubject + part}
	case authz.Header:
		must = []string{`(?:[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?)?`}
	default:
		must = []string{`[^\x00-\x1f\x7f]*`}
	}
	for _, m := range authz.Ambiguities {
		if m.Attribute != x.Attribute {
			continue
		}
		not = append(not, expression(m.Within()))
		if m.Alphabet != "" {
			must = append(must, m.Alphabet)
		}
	}
	return must, not
}

func languages(expressions []string) ([]*language, error) {
	out := make([]*language, 0, len(expressions))
	for _, e := range expressions {
		l, err := compileLanguage(e)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func (x *Axis) divideTexts(domains string) error {
	mustHave, mustNot := x.domain(domains)
	must, err1 := languages(mustHave)
	not, err2 := languages(mustNot)
	var of []string
	for _, t := range x.terms {
		var alternatives []string
		for _, m := range t.matches {
			alternatives = append(alternatives, "(?:"+x.expression(m)+")")
		}
		of = append(of, strings.Join(alternatives, "|"))
	}
	list, err3 := languages(of)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return err
	}
	found, err := kindsOfTexts(list, must, not)
	if err != nil {
		return err
	}
	slices.SortStableFunc(found, func(a, b kindOfText) int { return cmp.Compare(a.in.count(), b.in.count()) })
	for _, f := range found {
		x.kinds = append(x.kinds, Kind{Example: []string{f.example}, in: f.in})
	}
	x.usual()
	nothing := newSet(len(x.terms))
	switch {
	case x.Attribute == authz.Principal:
		x.kinds = append(x.kinds, Kind{Special: NoIdentity, Example: []string{}, in: nothing})
	case x.Attribute.Optional():
		x.kinds = append(x.kinds, Kind{Special: Absent, Example: []string{}, in: nothing})
		if x.Attribute.Many() {
			return x.unite()
		}
	}
	for _, m := range authz.Ambiguities {
		if m.Attribute != x.Attribute {
			continue
		}
		if m.Exact == "" {
			x.kinds = append(x.kinds, Kind{Special: Ambiguous, Example: []string{map[authz.Attribute]string{authz.Path: "/;a", authz.Method: "get"}[x.Attribute]}, in: nothing})
			continue
		}
		x.kinds = append(x.kinds, Kind{Special: m.Exact, Example: []string{m.Exact}, in: x.matching(m.Exact)})
	}
	return nil
}

// usual makes examples of methods that are in use, where there are some.
func (x *Axis) usual() {
	if x.Attribute != authz.Method {
		return
	}
	for _, method := range []string{"PATCH", "HEAD", "DELETE", "PUT", "POST", "GET"} { // the last one stays
		in := x.matching(method)
		for i, k := range x.kinds {
			if slices.Equal(k.in, in) {
				x.kinds[i].Example = []string{method}
			}
		}
	}
}

// matching are the terms that match a text.
func (x *Axis) matching(text string) set {
	in := newSet(len(x.terms))
	for i, t := range x.terms {
		for _, m := range t.matches {
			if re, err := regexp.Compile("^(?:" + x.expression(m) + ")$"); err == nil && re.MatchString(text) {
				in.add(i)
			}
		}
	}
	return in
}

// kindOf is the kind of a text; of who asks, of a SPIFFE ID, or of none if it is empty. It is -1 if there is no such kind.
func (x *Axis) kindOf(text string) int {
	special := ""
	if x.Attribute == authz.Principal && text == "" {
		special = NoIdentity
	}
	for _, m := range authz.Ambiguities {
		if m.Attribute == x.Attribute && m.Finds(text) {
			special = cmp.Or(m.Exact, Ambiguous)
		}
	}
	in := x.matching(text)
	return slices.IndexFunc(x.kinds, func(k Kind) bool {
		return k.Special == special && (special != "" || slices.Equal(k.in, in))
	})
}

// maxKinds bounds the kinds of what there may be several of.
const maxKinds = 4096

// unite adds what several values are: of a header that is sent twice, either line is enough for a match.
func (x *Axis) unite() error {
	seen := map[string]bool{}
	for _, k := range x.kinds {
		seen[k.in.key()] = true
	}
	single := slices.Clone(x.kinds)
	for i := 0; i < len(x.kinds); i++ {
		for _, s := range single {
			in := slices.Clone(x.kinds[i].in)
			in.or(s.in)
			if seen[in.key()] {
				continue
			}
			seen[in.key()] = true
			x.kinds = append(x.kinds, Kind{Example: slices.Concat(x.kinds[i].Example, s.Example), in: in})
			if len(x.kinds) > maxKinds {
				return ErrTooMany
			}
		}
	}
	return nil
}

// expression is a match as an expression for the texts of the axis: of a request principal, the parts of which are compared for themselves, for both with what is between them.
func (x *Axis) expression(m authz.Match) string {
	if x.Attribute != authz.RequestPrincipal {
		return expression(m)
	}
	issuer, subject := m.IssuerSubject()
	return "(?:" + expression(issuer) + ")" + authz.BetweenIssuerAndSubject + "(?:" + expression(subject) + ")"
}

func (x *Axis) ofAddresses() bool {
	return slices.ContainsFunc(x.terms, func(t term) bool {
		return slices.ContainsFunc(t.matches, func(m authz.Match) bool { return m.Kind == authz.CIDR })
	})
}

func (x *Axis) divideAddresses() {
	points := []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.IPv4Unspecified(), netip.MustParseAddr("2001:db8::1"), netip.IPv6Unspecified()}
	var networks [][]netip.Prefix
	for _, t := range x.terms {
		var of []netip.Prefix
		for _, m := range t.matches {
			p, err := netip.ParsePrefix(m.Value)
			if err != nil {
				continue
			}
			of = append(of, p)
			points = append(points, p.Masked().Addr())
			if after := authz.LastAddress(p).Next(); after.IsValid() {
				points = append(points, after)
			}
		}
		networks = append(networks, of)
	}
	seen := map[string]bool{}
	for _, at := range points {
		in := newSet(len(x.terms))
		for i, of := range networks {
			if slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Contains(at) }) {
				in.add(i)
			}
		}
		if !seen[in.key()] {
			seen[in.key()] = true
			x.kinds = append(x.kinds, Kind{Example: []string{at.String()}, in: in})
		}
	}
}

// clauseKinds are the kinds of which a clause holds.
func (x *Axis) clauseKinds(values, not []int) set {
	out := full(len(x.kinds))
	if len(values) > 0 {
		some := newSet(len(x.kinds))
		for _, t := range values {
			some.or(x.terms[t].kinds)
		}
		out.and(some)
	}
	for _, t := range not {
		out = out.minus(x.terms[t].kinds)
	}
	return out
}
