package space

import (
	"encoding/binary"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// outcome is what is known of a side's decision.
type outcome uint8

const (
	open outcome = iota
	allowed
	denied
)

// live is what of a side is still to be asked, of requests of which some axes are known.
type live struct {
	deny, allow []int32
	restricted  bool
	outcome     outcome
}

// settled forgets what no longer matters.
func (s *Space) settled(l live, level int) live {
	through := func(c int32) bool { return s.last[c] <= level }
	switch {
	case l.outcome != open:
	case slices.ContainsFunc(l.deny, through), l.restricted && len(l.allow) == 0:
		l.outcome = denied
	case len(l.deny) == 0 && (!l.restricted || slices.ContainsFunc(l.allow, through)):
		l.outcome = allowed
	default:
		return l
	}
	return live{outcome: l.outcome}
}

// maxNodes bounds what is divided, and so the time that it takes.
const maxNodes = 100_000

// walk goes through the axes from a level on.
func (s *Space) walk(level int, lives []live) *node {
	decided, alike := true, true
	for i := range lives {
		lives[i] = s.settled(lives[i], level)
		decided = decided && lives[i].outcome != open
		alike = alike && lives[i].equal(lives[0])
	}
	switch {
	case s.equal && alike && (level > 0 || s.sameModes()):
		return s.unique(&node{axis: -1, same: true})
	case decided && level > 0:
		end := &node{axis: -1}
		for i, l := range lives {
			if l.outcome == allowed {
				end.allowed |= 1 << i
			}
		}
		return s.unique(end)
	}
	key := memoKey(level, lives)
	if n := s.memo[key]; n != nil {
		return n
	}
	if len(s.memo) > maxNodes {
		s.tooMany = true
		return s.unique(&node{axis: -1, same: true})
	}
	n := s.branch(level, lives)
	s.memo[key] = n
	return n
}

// branch takes the kinds of a level's axis apart by what is left to ask of them.
func (s *Space) branch(level int, lives []live) *node {
	axis := s.order[level]
	x := s.axes[axis]
	var groups []string
	members := map[string]set{}
	after := map[string][]live{}
	for kind := range x.kinds {
		if only, fixed := s.fixed[axis]; fixed && kind != only {
			continue
		}
		next := make([]live, len(lives))
		for i, l := range lives {
			next[i] = s.keep(l, i, axis, kind)
		}
		key := memoKey(level, next)
		if members[key] == nil {
			groups = append(groups, key)
			members[key], after[key] = newSet(len(x.kinds)), next
		}
		members[key].add(kind)
	}
	n := &node{axis: axis}
	for _, key := range groups {
		to := s.walk(level+1, after[key])
		if i := slices.IndexFunc(n.branches, func(b branch) bool { return b.to == to }); i >= 0 {
			n.branches[i].kinds.or(members[key])
		} else {
			n.branches = append(n.branches, branch{members[key], to})
		}
	}
	if len(n.branches) == 1 {
		return n.branches[0].to
	}
	return s.unique(n)
}

// keep is what is left to ask of a side where the axis is of the kind.
func (s *Space) keep(l live, side, axis, kind int) live {
	x := s.axes[axis]
	if x.Attribute == authz.Principal {
		switch mode := s.sides[side].mode; {
		case mode == authz.Strict && x.kinds[kind].Special == NoIdentity:
			return live{outcome: denied}
		case mode == authz.Disable: // nobody has an identity there
			kind = slices.IndexFunc(x.kinds, func(k Kind) bool { return k.Special == NoIdentity })
		}
	}
	meets := func(c int32) bool { return s.cubes[c][axis] == nil || s.cubes[c][axis].has(kind) }
	filter := func(list []int32) (out []int32) {
		for _, c := range list {
			if meets(c) {
				out = append(out, c)
			}
		}
		return out
	}
	return live{filter(l.deny), filter(l.allow), l.restricted, l.outcome}
}

func (l live) equal(other live) bool {
	return l.outcome == other.outcome && l.restricted == other.restricted && slices.Equal(l.deny, other.deny) && slices.Equal(l.allow, other.allow)
}

func (s *Space) sameModes() bool {
	return !slices.ContainsFunc(s.sides, func(x side) bool { return x.mode != s.sides[0].mode })
}

func memoKey(level int, lives []live) string {
	key := []byte{byte(level)}
	for _, l := range lives {
		key = append(key, byte(l.outcome))
		if l.restricted {
			key[len(key)-1] |= 4
		}
		for _, list := range [][]int32{l.deny, l.allow} {
			key = binary.LittleEndian.AppendUint32(key, uint32(len(list)))
			for _, c := range list {
				key = binary.LittleEndian.AppendUint32(key, uint32(c))
			}
		}
	}
	return string(key)
}

// unique is the one node that says the same.
func (s *Space) unique(n *node) *node {
	key := binary.LittleEndian.AppendUint64(nil, n.allowed)
	key = append(key, byte(n.axis+1))
	if n.same {
		key = append(key, 1)
	}
	for _, b := range n.branches {
		key = binary.LittleEndian.AppendUint32(key, b.to.id)
		key = append(key, b.kinds.key()...)
	}
	if was := s.nodes[string(key)]; was != nil {
		return was
	}
	n.id = uint32(len(s.nodes))
	s.nodes[string(key)] = n
	return n
}

func (s *Space) root() *node {
	lives := make([]live, len(s.sides))
	for i, of := range s.sides {
		lives[i] = live{of.deny, of.allow, of.restricted, open}
	}
	return s.walk(0, lives)
}

// Region is requests about which each side decides in one way.
type Region struct {
	Parts   []Part // what they have; of other axes, anything
	Allowed []bool // by each side
}

// Part is the kinds of one axis.
type Part struct {
	Axis  *Axis
	kinds set
}

// maxRegions bounds how many regions are listed.
const maxRegions = 100_000

// Regions lists the regions. With changes alone, these are of what not all sides decide alike.
func (s *Space) Regions() ([]Region, error) {
	var out []Region
	var parts []Part
	var list func(n *node) error
	list = func(n *node) error {
		if n.axis >= 0 {
			for _, b := range n.branches {
				parts = append(parts, Part{s.axes[n.axis], b.kinds})
				if err := list(b.to); err != nil {
					return err
				}
				parts = parts[:len(parts)-1]
			}
			return nil
		}
		all := uint64(1)<<len(s.sides) - 1
		if n.same || s.equal && (n.allowed == 0 || n.allowed == all) {
			return nil
		}
		r := Region{Parts: slices.Clone(parts)}
		for i := range s.sides {
			r.Allowed = append(r.Allowed, n.allowed&(1<<i) != 0)
		}
		if out = append(out, r); len(out) > maxRegions {
			return ErrTooMany
		}
		return nil
	}
	root := s.root()
	if s.tooMany {
		return nil, ErrTooMany
	}
	err := list(root)
	return out, err
}

// Example is a request of the region, to a port of its Side.
func (s *Space) Example(r Region, of Side) (authz.Request, bool) {
	req := authz.Request{HTTP: of.HTTP, DestinationPort: of.Port}
	ok := true
	for i, x := range s.axes {
		kind := 0
		if x.ordinary.first() >= 0 {
			kind = x.ordinary.first()
		}
		for _, p := range r.Parts {
			if p.Axis == s.axes[i] {
				kind = p.pick()
			}
		}
		ok = req.Set(x.Attribute, x.Key, x.kinds[kind].Example) && ok
	}
	if of.HTTP && req.Method == "" {
		req.Method = "GET"
	}
	if of.HTTP && req.Path == "" && req.Method != Tunnel {
		req.Path = "/"
	}
	if req.Method == Tunnel {
		req.Path = ""
	}
	return req, ok
}

// pick is the kind that examples are of: an ordinary one, if there is one.
func (p Part) pick() int {
	both := slices.Clone(p.kinds)
	both.and(p.Axis.ordinary)
	if i := both.first(); i >= 0 {
		return i
	}
	return p.kinds.first()
}
