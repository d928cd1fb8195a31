package authz

import (
	"net/netip"
	"slices"
	"strconv"
)

// Comparison says of rules what they can match, whatever the requests are. Its answers are certain where they say that something cannot be, and nothing
// more. What it has found out it keeps, so it is for one goroutine.
type Comparison struct{ languages *languages }

// NewComparison makes one.
func NewComparison() *Comparison { return &Comparison{newLanguages()} }

// Compared is a rule of an action, made ready to be compared with many others.
type Compared struct {
	rule, connection *Rule // as it holds for requests, and for what is not HTTP; nil: it matches none
	example          map[subject]string
	to, from, when   []checks // alternatives
}

// checks are clauses that look at a text, made ready.
type checks []check

type check struct {
	of          subject
	values, not func(string) bool // nil: there are none
}

func checksOf(alternatives ...Clauses) (out []checks) {
	for _, clauses := range alternatives {
		ready := checks{}
		for i := range clauses {
			c := check{of: clauses[i].subject()}
			if !c.of.text() {
				continue
			}
			if len(clauses[i].Values) > 0 {
				c.values = matcher(clauses[i].Values)
			}
			if len(clauses[i].Not) > 0 {
				c.not = matcher(clauses[i].Not)
			}
			ready = append(ready, c)
		}
		out = append(out, ready)
	}
	return out
}

// fail reports whether one of them certainly does not hold of an example.
func (c checks) fail(example map[subject]string) bool {
	for i := range c {
		text, ok := example[c[i].of]
		if ok && (c[i].values != nil && !c[i].values(text) || c[i].not != nil && c[i].not(text)) {
			return true
		}
	}
	return false
}

// excluded reports whether a rule certainly does not hold of an example, by which most comparisons are over before they begin.
func (c *Compared) excluded(example map[subject]string) bool {
	for _, alternatives := range [3][]checks{c.to, c.from, c.when} {
		if len(alternatives) > 0 && !slices.ContainsFunc(alternatives, func(a checks) bool { return !a.fail(example) }) {
			return true
		}
	}
	return false
}

// Prepare makes a rule of an action ready.
func (c *Comparison) Prepare(action Action, r Rule) *Compared {
	out := &Compared{}
	if r.Never {
		return out
	}
	out.rule = &r
	policy := Policy{Action: action, Rules: []Rule{r}}
	for _, left := range policy.TCP().Rules {
		out.connection = &left
	}
	demanded := slices.Clone(r.When)
	for _, alternatives := range [][]Clauses{r.From, r.To} {
		if len(alternatives) > 0 {
			demanded = append(demanded, alternatives[0]...)
		}
	}
	out.example = c.example(demanded)
	out.to, out.from, out.when = checksOf(r.To...), checksOf(r.From...), checksOf(r.When)
	return out
}

// example has a text for each subject that is one, such that all that is demanded of it holds. One that cannot be found is left out.
func (c *Comparison) example(demanded Clauses) map[subject]string {
	out := map[subject]string{}
	for i := range demanded {
		s := demanded[i].subject()
		if _, done := out[s]; done || !s.text() {
			continue
		}
		if found := c.languages.find(demandOf(demanded, s)); found.known {
			out[s] = found.text
		}
	}
	return out
}

// Impossible is a part of a rule that no request of HTTP can meet.
type Impossible struct {
	Part  string // "from", "to" or "when"
	Index int    // of the alternative; 0 for "when"
	// Of is what cannot be as demanded; Principal stands for all that comes from the peer's certificate.
	Of    Attribute
	Whole bool // so the rule matches no request of HTTP
	// Never says that the rule matches no connection either that is not HTTP, of which less is asked unless the action is ALLOW.
	Never bool
}

// Impossible finds the alternatives of a rule of an action that contradict themselves or what the rule demands besides.
func (c *Comparison) Impossible(action Action, r Rule) []Impossible {
	out := c.impossible(r)
	if !slices.ContainsFunc(out, func(i Impossible) bool { return i.Whole }) {
		return out
	}
	policy := Policy{Action: action, Rules: []Rule{r}}
	never := true
	for _, left := range policy.TCP().Rules {
		never = slices.ContainsFunc(c.impossible(left), func(i Impossible) bool { return i.Whole })
	}
	for i := range out {
		out[i].Never = never
	}
	return out
}

func (c *Comparison) impossible(r Rule) (out []Impossible) {
	if r.Never {
		return nil
	}
	if of := c.contradiction(r.When); of != "" {
		return []Impossible{{Part: "when", Of: of, Whole: true}}
	}
	alternatives := func(part string, of []Clauses) {
		var found []Impossible
		for i, clauses := range of {
			if of := c.contradiction(both(clauses, r.When)); of != "" {
				found = append(found, Impossible{Part: part, Index: i, Of: of})
			}
		}
		for i := range found {
			found[i].Whole = len(found) == len(of)
		}
		out = append(out, found...)
	}
	alternatives("from", r.From)
	alternatives("to", r.To)
	return out
}

// Contains reports whether a rule certainly matches whatever another one matches, at ports that are HTTP and at others.
func (c *Comparison) Contains(r, other *Compared) bool {
	switch {
	case r.rule == nil:
		return false
	case other.rule == nil:
		return true
	case r.excluded(other.example) || !c.contains(r.rule, other.rule):
		return false
	case other.connection == nil:
		return true
	}
	return r.connection != nil && c.contains(r.connection, other.connection)
}

// contains compares the rules as they are. What a rule's from and to look at has nothing in common, so that each alternative of the one can be
// put beside what the rule demands besides, without those of the other.
func (c *Comparison) contains(r, other *Rule) bool {
	return c.covers(r.From, other.From, other.When) && c.covers(r.To, other.To, other.When) && c.demanded(r.When, other)
}

// covers reports whether each of some alternatives, beside what is demanded with it, implies one of others.
func (c *Comparison) covers(wide, narrow []Clauses, when Clauses) bool {
	if len(wide) == 0 {
		return true
	}
	if len(narrow) == 0 {
		narrow = []Clauses{nil}
	}
	for _, n := range narrow {
		premise := both(n, when)
		if !slices.ContainsFunc(wide, func(w Clauses) bool { return c.impliesAll(premise, w) }) {
			return false
		}
	}
	return true
}

// demanded reports whether a rule implies each of some clauses.
func (c *Comparison) demanded(clauses Clauses, by *Rule) bool {
	for _, clause := range clauses {
		if !c.always(by.From, by.When, clause) && !c.always(by.To, by.When, clause) {
			return false
		}
	}
	return true
}

func (c *Comparison) always(alternatives []Clauses, when Clauses, clause Clause) bool {
	if len(alternatives) == 0 {
		return c.implies(when, clause)
	}
	return !slices.ContainsFunc(alternatives, func(a Clauses) bool { return !c.implies(both(a, when), clause) })
}

func (c *Comparison) impliesAll(premise, clauses Clauses) bool {
	return !slices.ContainsFunc(clauses, func(clause Clause) bool { return !c.implies(premise, clause) })
}

func both(a, b Clauses) Clauses { return slices.Concat(a, b) }

// subject is what clauses look at: those about the peer all look at one text.
type subject struct {
	Attribute
	key string
}

func (c *Clause) subject() subject {
	if c.Attribute.Identity() {
		return subject{Attribute: Principal}
	}
	return subject{c.Attribute, c.Key}
}

// several reports whether a request may have more than one text of it, of which any will do.
func (s subject) several() bool {
	a := attributes[s.Attribute]
	return a.text == nil && a.address == nil && !a.peer && s.Attribute != DestinationPort
}

// text reports whether it is one text, or, of a clause alone, none.
func (s subject) text() bool {
	return !s.several() && attributes[s.Attribute].address == nil && s.Attribute != DestinationPort
}

// opaque reports whether its matches are compared with something else than a text, so that of two of them no more is known than whether they are the same.
func (s subject) opaque() bool { return s.several() && s.Attribute != Header }

// demandOf is what clauses demand of a subject.
func demandOf(clauses Clauses, s subject) (d demand) {
	for _, c := range clauses {
		if c.subject() != s {
			continue
		}
		if len(c.Values) > 0 {
			d.some = append(d.some, c.Values)
		}
		d.none = append(d.none, c.Not...)
	}
	return d
}

// contradiction is an attribute that cannot be as all clauses demand; empty if there is none.
func (c *Comparison) contradiction(clauses Clauses) Attribute {
	done := map[subject]bool{}
	for i := range clauses {
		s := clauses[i].subject()
		if !done[s] && !c.some(s, demandOf(clauses, s)) {
			return s.Attribute
		}
		done[s] = true
	}
	return ""
}

// some reports whether a subject can meet a demand.
func (c *Comparison) some(s subject, d demand) bool {
	if !s.several() {
		return c.one(s, d)
	}
	for _, some := range d.some {
		if !c.one(s, demand{[][]Match{some}, d.none}) {
			return false
		}
	}
	return true
}

// implies reports whether whatever meets a premise meets a clause.
func (c *Comparison) implies(premise Clauses, clause Clause) bool {
	s := clause.subject()
	d := demandOf(premise, s)
	none := append(slices.Clone(d.none), clause.Values...)
	if s.several() {
		// That one text is among the values says nothing of the others.
		inValues := len(clause.Values) == 0 || slices.ContainsFunc(d.some, func(some []Match) bool { return !c.one(s, demand{[][]Match{some}, none}) })
		return inValues && (len(clause.Not) == 0 || !c.one(s, demand{[][]Match{clause.Not}, d.none}))
	}
	if len(clause.Values) > 0 && c.one(s, demand{d.some, none}) {
		return false
	}
	return len(clause.Not) == 0 || !c.one(s, demand{append(slices.Clone(d.some), clause.Not), d.none})
}

// one reports whether there is a text, an address or a port that meets a demand.
func (c *Comparison) one(s subject, d demand) bool {
	switch {
	case s.opaque():
		covered := func(m Match) bool { return slices.Contains(d.none, m) || slices.Contains(d.none, Match{Kind: Present}) }
		return !slices.ContainsFunc(d.some, func(some []Match) bool {
			return !slices.ContainsFunc(some, func(m Match) bool { return !covered(m) })
		})
	case attributes[s.Attribute].address != nil:
		return addressOf(d)
	case s.Attribute == DestinationPort:
		return portOf(d)
	}
	return c.languages.possible(d)
}

// addressOf reports whether an address meets a demand. Whether one does changes only where a network begins and behind its end.
func addressOf(d demand) bool {
	candidates := []netip.Addr{{}, netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	some := make([][]netip.Prefix, len(d.some))
	for i, list := range d.some {
		some[i] = prefixes(list)
	}
	none := prefixes(d.none)
	for _, list := range append(slices.Clone(some), none) {
		for _, p := range list {
			candidates = append(candidates, p.Masked().Addr())
			if next := LastAddress(p).Next(); next.IsValid() {
				candidates = append(candidates, next)
			}
		}
	}
	within := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return slices.ContainsFunc(candidates, func(a netip.Addr) bool {
		return !within(none, a) && !slices.ContainsFunc(some, func(list []netip.Prefix) bool { return !within(list, a) })
	})
}

// LastAddress is the last address of a network.
func LastAddress(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	out, _ := netip.AddrFromSlice(bytes)
	return out
}

// portOf reports whether a port meets a demand: one that is named, or any other.
func portOf(d demand) bool {
	candidates := []string{"0"}
	for _, list := range append(slices.Clone(d.some), d.none) {
		for _, m := range list {
			candidates = append(candidates, m.Value)
		}
	}
	for n := uint64(1); ; n++ { // one that is not named, of which there are more than values
		if text := strconv.FormatUint(n, 10); !slices.Contains(candidates, text) {
			candidates = append(candidates, text)
			break
		}
	}
	return slices.ContainsFunc(candidates, func(port string) bool {
		return !exact(d.none, Port)[port] && !slices.ContainsFunc(d.some, func(list []Match) bool { return !exact(list, Port)[port] })
	})
}
