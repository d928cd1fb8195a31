package space

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"unicode"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// language is the texts that an expression matches as a whole, as an automaton that is made deterministic as far as it is asked. Texts are read in steps, each of
// which stands for all characters that no expression tells apart; see alphabet.
type language struct {
	prog   *syntax.Prog
	steps  []rune // one character for each step
	states map[string]int32
	sets   [][]uint32 // program counters of each state
	ends   []bool     // whether the text may end there
	next   [][]int32  // by state and step; unknown or dead
}

const (
	dead    = -1
	unknown = -2
)

// expression is a match as an expression for whole texts.
func expression(m authz.Match) string {
	switch m.Kind {
	case authz.Exact:
		return regexp.QuoteMeta(m.Value)
	case authz.Prefix:
		return regexp.QuoteMeta(m.Value) + authz.AnyByte + "*"
	case authz.Suffix:
		return authz.AnyByte + "*" + regexp.QuoteMeta(m.Value)
	case authz.Present:
		return authz.AnyByte + "+"
	}
	return "(?:" + m.Value + ")"
}

func compileLanguage(expression string) (*language, error) {
	re, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", expression, err)
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", expression, err)
	}
	return &language{prog: prog, states: map[string]int32{}}, nil
}

// preferred are the characters that examples are made of where any would do.
const preferred = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-./_~:,;@!$&'()*+=%"

// alphabet is one character for each set of those that no language tells apart, those that people read best first.
func alphabet(languages []*language) []rune {
	cuts := map[rune]bool{0: true}
	cut := func(lo, hi rune) {
		cuts[lo] = true
		if hi < unicode.MaxRune {
			cuts[hi+1] = true
		}
	}
	var tellers []*syntax.Inst
	seen := map[string]bool{}
	for _, l := range languages {
		for i := range l.prog.Inst {
			in := &l.prog.Inst[i]
			switch in.Op {
			case syntax.InstRune, syntax.InstRune1:
				if k := fmt.Sprint(in.Rune, in.Arg&uint32(syntax.FoldCase)); !seen[k] {
					seen[k] = true
					tellers = append(tellers, in)
				}
				if len(in.Rune) == 1 {
					r := in.Rune[0]
					cut(r, r)
					for f := unicode.SimpleFold(r); syntax.Flags(in.Arg)&syntax.FoldCase != 0 && f != r; f = unicode.SimpleFold(f) {
						cut(f, f)
					}
				}
				for j := 0; j+1 < len(in.Rune); j += 2 {
					cut(in.Rune[j], in.Rune[j+1])
				}
			case syntax.InstRuneAnyNotNL:
				cut('\n', '\n')
			}
		}
	}
	for _, r := range preferred {
		cuts[r] = true
	}
	starts := make([]rune, 0, len(cuts))
	for r := range cuts {
		starts = append(starts, r)
	}
	rank := func(r rune) int {
		for i, p := range preferred {
			if p == r {
				return i
			}
		}
		return len(preferred) + int(r)
	}
	slices.SortFunc(starts, func(a, b rune) int { return rank(a) - rank(b) })
	var out []rune
	same := map[string]bool{}
	for _, r := range starts {
		told := newSet(len(tellers) + 1)
		for i, in := range tellers {
			if in.MatchRune(r) {
				told.add(i)
			}
		}
		if r == '\n' {
			told.add(len(tellers))
		}
		if k := told.key(); !same[k] {
			same[k] = true
			out = append(out, r)
		}
	}
	return out
}

// state is the number of the state in which the program is at the counters.
func (l *language) state(counters []uint32) int32 {
	if len(counters) == 0 {
		return dead
	}
	slices.Sort(counters)
	counters = slices.Compact(counters)
	key := make([]byte, 0, 4*len(counters))
	for _, pc := range counters {
		key = binary.LittleEndian.AppendUint32(key, pc)
	}
	if s, ok := l.states[string(key)]; ok {
		return s
	}
	s := int32(len(l.sets))
	l.states[string(key)] = s
	l.sets = append(l.sets, counters)
	l.ends = append(l.ends, l.atEnd(counters))
	next := make([]int32, len(l.steps))
	for i := range next {
		next[i] = unknown
	}
	l.next = append(l.next, next)
	return s
}

// follow goes on from a counter without reading, and collects where something is to be read, the text may end, or more depends on its end.
func (l *language) follow(pc uint32, begin, end bool, seen map[uint32]bool, out *[]uint32) {
	if seen[pc] {
		return
	}
	seen[pc] = true
	switch in := &l.prog.Inst[pc]; in.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		l.follow(in.Out, begin, end, seen, out)
		l.follow(in.Arg, begin, end, seen, out)
	case syntax.InstCapture, syntax.InstNop:
		l.follow(in.Out, begin, end, seen, out)
	case syntax.InstEmptyWidth:
		want := syntax.EmptyOp(in.Arg)
		var is syntax.EmptyOp
		if begin {
			is |= syntax.EmptyBeginText | syntax.EmptyBeginLine
		}
		if end {
			is |= syntax.EmptyEndText | syntax.EmptyEndLine
		}
		if want&^is == 0 {
			l.follow(in.Out, begin, end, seen, out)
		} else if !end {
			*out = append(*out, pc)
		}
	case syntax.InstFail:
	default:
		*out = append(*out, pc)
	}
}

func (l *language) start(steps []rune) int32 {
	l.steps = steps
	var out []uint32
	l.follow(uint32(l.prog.Start), true, false, map[uint32]bool{}, &out)
	return l.state(out)
}

func (l *language) atEnd(counters []uint32) bool {
	var out []uint32
	seen := map[uint32]bool{}
	for _, pc := range counters {
		l.follow(pc, false, true, seen, &out)
	}
	return slices.ContainsFunc(out, func(pc uint32) bool { return l.prog.Inst[pc].Op == syntax.InstMatch })
}

func (l *language) step(s int32, step int) int32 {
	if n := l.next[s][step]; n != unknown {
		return n
	}
	var out []uint32
	seen := map[uint32]bool{}
	for _, pc := range l.sets[s] {
		in := &l.prog.Inst[pc]
		reads := false
		switch in.Op {
		case syntax.InstRune, syntax.InstRune1:
			reads = in.MatchRune(l.steps[step])
		case syntax.InstRuneAny:
			reads = true
		case syntax.InstRuneAnyNotNL:
			reads = l.steps[step] != '\n'
		}
		if reads {
			l.follow(in.Out, false, false, seen, &out)
		}
	}
	n := l.state(out)
	l.next[s][step] = n
	return n
}
