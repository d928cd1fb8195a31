package space

import (
	"encoding/binary"
	"regexp"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Side is what holds at one port of a workload: before a change and after it, say.
type Side struct {
	Policies []authz.Policy // in scope
	Port     uint32
	HTTP     bool
	Mode     authz.TLSMode // of the port
	// Asked is an external authorizer, if it is about whether that is asked: then what is allowed is what it is not asked about. Otherwise it is about the verdict of
	// policies, whatever authorizers say.
	Asked string
}

// Space is all requests to a port, divided by what the policies of some sides tell apart.
type Space struct {
	axes    []*Axis
	order   []int // of axes, as the division goes
	sides   []side
	cubes   []cube
	last    []int // of each cube: after how many axes it demands nothing more
	ids     map[string]int32
	nodes   map[string]*node
	memo    map[string]*node
	tooMany bool        // to be gone through
	fixed   map[int]int // kinds of axes that alone are looked at
	equal   bool        // where all sides are the same, it does not matter how they decide
}

// side is a Side in numbers.
type side struct {
	deny, allow []int32 // cubes
	restricted  bool
	mode        authz.TLSMode
}

// cube is what a rule demands: of each axis the kinds that meet it; nil demands nothing.
type cube []set

// node says how the sides decide where axes before its own have been gone through.
type node struct {
	id       uint32
	axis     int // index into axes; -1 at an end
	branches []branch
	allowed  uint64 // at an end: a bit for each side
	same     bool   // at an end: all sides decide alike, however that is
}

type branch struct {
	kinds set
	to    *node
}

// Divide divides the requests. With changes alone, what all sides decide alike is not looked into.
func Divide(sides []Side, trustDomains []string, changesAlone bool) (*Space, error) {
	quoted := make([]string, len(trustDomains))
	for i, td := range trustDomains {
		quoted[i] = regexp.QuoteMeta(td)
	}
	a := &axes{index: map[string]int{}, domains: "(?:" + strings.Join(quoted, "|") + ")"}
	a.of(authz.Principal, "")
	s := &Space{ids: map[string]int32{}, nodes: map[string]*node{}, memo: map[string]*node{}, fixed: map[int]int{}, equal: changesAlone}
	// Attributes first, so that all sides speak of the same kinds.
	demands := make([][]demand, len(sides))
	asked := sides
	if changesAlone {
		var err error
		if asked, err = narrowed(sides, a.domains); err != nil {
			return nil, err
		}
	}
	for i, of := range sides {
		demands[i] = demandsOf(a, of, asked[i].Policies)
	}
	if err := a.divide(); err != nil {
		return nil, err
	}
	s.axes = a.list
	for i, of := range sides {
		side, ok := s.sideOf(a, of, demands[i])
		if !ok {
			return nil, ErrTooMany
		}
		s.sides = append(s.sides, side)
	}
	s.order = make([]int, len(s.axes))
	for i := range s.order {
		s.order[i] = i
	}
	rank := func(i int) int {
		return slices.Index([]authz.Attribute{authz.Principal, authz.Method, authz.Path, authz.Host}, s.axes[i].Attribute)
	}
	slices.SortStableFunc(s.order, func(x, y int) int {
		rx, ry := rank(x), rank(y)
		if rx < 0 || ry < 0 {
			if rx < 0 && ry < 0 {
				return strings.Compare(s.axes[x].name(), s.axes[y].name())
			}
			return ry - rx // what has a place comes first
		}
		return rx - ry
	})
	position := make([]int, len(s.axes))
	for level, axis := range s.order {
		position[axis] = level
	}
	for _, c := range s.cubes {
		last := 0
		for axis, kinds := range c {
			if kinds != nil {
				last = max(last, position[axis]+1)
			}
		}
		s.last = append(s.last, last)
	}
	return s, nil
}

// Fix has the division look at requests alone that have a value of an attribute, in the form in which rules see it: a SPIFFE ID (empty for none), a method, a path. It is
// false if no request has it.
func (s *Space) Fix(a authz.Attribute, value string) bool {
	for i, x := range s.axes {
		if x.Attribute != a || x.Key != "" {
			continue
		}
		kind := x.kindOf(value)
		s.fixed[i] = kind
		return kind >= 0
	}
	return true // nothing tells it from others
}

// demand is a rule in terms of axes, before these are divided: alternatives of what must hold together.
type demand struct {
	policy authz.Policy
	from   []clauses
	to     []clauses
	when   clauses
}

type clauses []clause

type clause struct {
	axis        int
	values, not []int
	holds       *bool // what is known of a port already
}

// demandsOf are those of the policies of a side that are to be asked.
func demandsOf(a *axes, of Side, asked []authz.Policy) (out []demand) {
	for _, p := range asked {
		if !of.decides(p) {
			continue
		}
		rules := p
		if !of.HTTP {
			rules = p.TCP()
		}
		for _, r := range rules.Rules {
			if r.Never {
				continue
			}
			d := demand{policy: p, when: a.clausesOf(r.When, of.Port)}
			for _, from := range r.From {
				d.from = append(d.from, a.clausesOf(from, of.Port))
			}
			for _, to := range r.To {
				d.to = append(d.to, a.clausesOf(to, of.Port))
			}
			out = append(out, d)
		}
	}
	if of.HTTP {
		for _, m := range authz.Ambiguities {
			if of.concerns(m) {
				a.of(m.Attribute, "")
			}
		}
	}
	return out
}

// concerns reports whether what is ambiguous is denied. What an external authorizer says of it makes no difference, so it counts as nothing that one is asked about.
func (s Side) concerns(m authz.Ambiguity) bool {
	return slices.ContainsFunc(s.Policies, func(p authz.Policy) bool {
		return !p.Ignored && !p.DryRun && p.Action != authz.Audit && m.Concerns(p)
	})
}

// special are the kinds of an axis's texts that an ambiguity finds.
func (x *Axis) special(m authz.Ambiguity) set {
	out := newSet(len(x.kinds))
	for i, k := range x.kinds {
		if k.Special == Ambiguous && m.Exact == "" || k.Special == m.Exact && m.Exact != "" {
			out.add(i)
		}
	}
	return out
}

func (a *axes) clausesOf(of authz.Clauses, port uint32) (out clauses) {
	for _, c := range of {
		if c.Attribute == authz.DestinationPort {
			holds := c.AtPort(port)
			out = append(out, clause{holds: &holds})
			continue
		}
		axis, values, not := a.termsOf(c)
		out = append(out, clause{axis: axis, values: values, not: not})
	}
	return out
}

// maxCubes bounds what the alternatives of rules multiply to.
const maxCubes = 20_000

// sideOf makes cubes of demands; false if they are too many.
func (s *Space) sideOf(a *axes, of Side, demands []demand) (side, bool) {
	out := side{mode: of.Mode, restricted: of.restricted()}
	plain := make(cube, len(s.axes)) // what is not denied as ambiguous, if that matters
	if of.HTTP {
		for _, m := range authz.Ambiguities {
			if !of.concerns(m) {
				continue
			}
			at := a.of(m.Attribute, "")
			found := s.axes[at].special(m)
			if of.Asked != "" {
				if plain[at] == nil {
					plain[at] = full(len(s.axes[at].kinds))
				}
				plain[at] = plain[at].minus(found)
				continue
			}
			c := make(cube, len(s.axes))
			c[at] = found
			out.deny = append(out.deny, s.id(c))
		}
	}
	for _, d := range demands {
		list := &out.allow
		if d.policy.Action != authz.Allow {
			list = &out.deny
		}
		whens := s.alternatives([]clauses{d.when})
		froms, tos := s.alternatives(d.from), s.alternatives(d.to)
		if len(froms)*len(tos)+len(s.cubes) > maxCubes {
			return side{}, false
		}
		for _, when := range whens {
			for _, from := range froms {
				for _, to := range tos {
					if c, some := both(when, from, to, plain); some {
						*list = append(*list, s.id(c))
					}
				}
			}
		}
	}
	slices.Sort(out.deny)
	slices.Sort(out.allow)
	out.deny, out.allow = slices.Compact(out.deny), slices.Compact(out.allow)
	return out, true
}

// alternatives are cubes, any of which will do; one that demands nothing if there are no alternatives. Those that look at the same one axis are one cube.
func (s *Space) alternatives(of []clauses) (out []cube) {
	if len(of) == 0 {
		return []cube{make(cube, len(s.axes))}
	}
	united := map[int]cube{}
	for _, all := range of {
		c, some := make(cube, len(s.axes)), true
		at, only := -1, true
		for _, one := range all {
			if one.holds != nil {
				some = some && *one.holds
				continue
			}
			kinds := s.axes[one.axis].clauseKinds(one.values, one.not)
			if c[one.axis] == nil {
				c[one.axis] = kinds
			} else {
				c[one.axis].and(kinds)
			}
			only = only && (at < 0 || at == one.axis)
			at = one.axis
		}
		switch {
		case !some:
		case at >= 0 && only && united[at] != nil:
			united[at][at].or(c[at])
		case at >= 0 && only:
			united[at] = c
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}

// both is what meets several cubes; false if nothing does.
func both(cubes ...cube) (cube, bool) {
	out := make(cube, len(cubes[0]))
	for _, c := range cubes {
		for i, kinds := range c {
			switch {
			case kinds == nil:
			case out[i] == nil:
				out[i] = slices.Clone(kinds)
			default:
				out[i].and(kinds)
			}
		}
	}
	for _, kinds := range out {
		if kinds != nil && kinds.first() < 0 {
			return nil, false
		}
	}
	return out, true
}

// id numbers a cube: equal ones have one number, whichever side they are of.
func (s *Space) id(c cube) int32 {
	var key []byte
	for i, kinds := range c {
		if kinds != nil && kinds.count() == len(s.axes[i].kinds) {
			c[i], kinds = nil, nil
		}
		if kinds != nil {
			key = binary.LittleEndian.AppendUint32(key, uint32(i))
			key = append(key, kinds.key()...)
		}
	}
	if i, ok := s.ids[string(key)]; ok {
		return i
	}
	i := int32(len(s.cubes))
	s.ids[string(key)] = i
	s.cubes = append(s.cubes, c)
	return i
}
