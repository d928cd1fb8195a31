package authz

import (
	"encoding/binary"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// languages says whether texts exist that meet demands. What it has found out it keeps, so it is for one goroutine.
type languages struct {
	matchers map[Match]func(string) bool
	programs map[string]*syntax.Prog // of whole texts, nil for one that cannot be followed
	answers  map[string]answer
	budget   int // states that may still be looked at
}

func newLanguages() *languages {
	return &languages{map[Match]func(string) bool{}, map[string]*syntax.Prog{}, map[string]answer{}, maxStatesOfAll}
}

// answer is whether a text meets a demand, and one that does, if it is known.
type answer struct {
	possible bool
	text     string
	known    bool
}

// demand is what a text is to meet: one match of each list of some, and none of others.
type demand struct {
	some [][]Match
	none []Match
}

// The searches for texts are bounded, as one for none may grow with the product of all that is demanded: each of them, and all together.
const (
	maxStates      = 4000
	maxStatesOfAll = 200_000
)

// possible reports whether there is a text that meets a demand. It is false only if that is certain.
func (l *languages) possible(d demand) bool { return l.find(d).possible }

// find looks for a text that meets a demand.
func (l *languages) find(d demand) answer {
	if slices.ContainsFunc(d.some, func(m []Match) bool { return len(m) == 0 }) {
		return answer{}
	}
	for _, t := range witnesses(d) {
		if l.meets(d, t) {
			return answer{true, t, true}
		}
	}
	for _, some := range d.some {
		if !slices.ContainsFunc(some, func(m Match) bool { return m.Kind != Exact }) {
			return answer{} // each of them has been tried
		}
	}
	key := d.key()
	found, known := l.answers[key]
	if !known {
		found = l.search(d)
		l.answers[key] = found
	}
	return found
}

// witnesses are texts that are likely to meet a demand, if any does. Of each exact match, its text is one.
func witnesses(d demand) []string {
	out := []string{"", "/~"}
	for _, list := range append(slices.Clone(d.some), d.none) {
		for _, m := range list {
			switch m.Kind {
			case Exact:
				out = append(out, m.Value)
			case Prefix:
				out = append(out, m.Value, m.Value+"~")
			case Suffix:
				out = append(out, m.Value, "/~"+m.Value)
			}
		}
	}
	return out
}

func (l *languages) meets(d demand, t string) bool {
	for _, some := range d.some {
		if !l.any(some, t) {
			return false
		}
	}
	return !l.any(d.none, t)
}

func (l *languages) any(of []Match, t string) bool {
	return slices.ContainsFunc(of, func(m Match) bool {
		f := l.matchers[m]
		if f == nil {
			f = m.matcher()
			l.matchers[m] = f
		}
		return f(t)
	})
}

func (d demand) key() string {
	var sb strings.Builder
	write := func(list []Match) {
		for _, m := range list {
			sb.WriteString(string(m.Kind) + "\x00" + m.Value + "\x01")
		}
		sb.WriteByte('\x02')
	}
	for _, some := range d.some {
		write(some)
	}
	write(d.none)
	return sb.String()
}

// search looks for a text by following the expressions of all that is demanded at once, character by character.
func (l *languages) search(d demand) answer {
	var programs []*syntax.Prog
	for _, list := range append(slices.Clone(d.some), d.none) {
		p := l.program(list)
		if p == nil {
			return answer{possible: true}
		}
		programs = append(programs, p)
	}
	type state struct {
		at   [][]uint32
		text string
	}
	characters := distinct(programs)
	start := make([][]uint32, len(programs))
	for i, p := range programs {
		start[i] = closure(p, []uint32{uint32(p.Start)})
	}
	seen := map[string]bool{stateKey(start): true}
	queue := []state{{start, ""}}
	for ; len(queue) > 0; l.budget-- {
		now := queue[0]
		queue = queue[1:]
		if accepted(programs, now.at) {
			return answer{true, now.text, true}
		}
		if l.budget <= 0 {
			return answer{possible: true}
		}
		for _, c := range characters {
			next, dead := advance(programs, now.at, c)
			if dead {
				continue
			}
			key := stateKey(next)
			if seen[key] {
				continue
			}
			if len(seen) >= maxStates {
				return answer{possible: true}
			}
			seen[key] = true
			queue = append(queue, state{next, now.text + string(c)})
		}
	}
	return answer{}
}

// program is the expression of a list of matches; nil if a text is not followed character by character. A character that stands for bytes that are no UTF-8 is in none.
func (l *languages) program(list []Match) *syntax.Prog {
	var each []string
	for _, m := range list {
		if strings.ContainsRune(m.Value, utf8.RuneError) {
			return nil
		}
		switch q := regexp.QuoteMeta(m.Value); m.Kind {
		case Exact:
			each = append(each, q)
		case Prefix:
			each = append(each, q+anyBytes)
		case Suffix:
			each = append(each, anyBytes+q)
		case Present:
			each = append(each, AnyByte+"+")
		case Regexp:
			each = append(each, "(?:"+m.Value+")")
		default:
			return nil
		}
	}
	text := strings.Join(each, "|")
	if len(each) == 0 {
		text = `[^\x00-\x{10FFFF}]` // nothing
	}
	if p, known := l.programs[text]; known {
		return p
	}
	var prog *syntax.Prog
	if re, err := syntax.Parse(text, syntax.Perl); err == nil {
		if p, err := syntax.Compile(re.Simplify()); err == nil && !slices.ContainsFunc(p.Inst, func(i syntax.Inst) bool { return i.Op == syntax.InstEmptyWidth }) {
			prog = p
		}
	}
	l.programs[text] = prog
	return prog
}

// distinct are characters, one of each set that no program tells apart.
func distinct(programs []*syntax.Prog) []rune {
	begins := map[rune]bool{0: true}
	add := func(lo, hi rune) { begins[lo], begins[hi+1] = true, true }
	for _, p := range programs {
		for _, i := range p.Inst {
			switch i.Op {
			case syntax.InstRune, syntax.InstRune1:
				if len(i.Rune) == 1 {
					add(i.Rune[0], i.Rune[0])
					if syntax.Flags(i.Arg)&syntax.FoldCase != 0 {
						for r := unicode.SimpleFold(i.Rune[0]); r != i.Rune[0]; r = unicode.SimpleFold(r) {
							add(r, r)
						}
					}
				}
				for j := 0; j+1 < len(i.Rune); j += 2 {
					add(i.Rune[j], i.Rune[j+1])
				}
			case syntax.InstRuneAnyNotNL:
				add('\n', '\n')
			}
		}
	}
	var out []rune
	for r := range begins {
		if r <= unicode.MaxRune {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return out
}

// closure are the instructions that read a character or accept, to which some lead without one.
func closure(p *syntax.Prog, from []uint32) []uint32 {
	seen := make([]bool, len(p.Inst))
	var out []uint32
	for len(from) > 0 {
		at := from[len(from)-1]
		from = from[:len(from)-1]
		if seen[at] {
			continue
		}
		seen[at] = true
		switch i := p.Inst[at]; i.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			from = append(from, i.Out, i.Arg)
		case syntax.InstCapture, syntax.InstNop:
			from = append(from, i.Out)
		case syntax.InstFail:
		default:
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}

// advance reads a character. It is dead if something that is demanded can no longer be met; the last program is of what is not to be.
func advance(programs []*syntax.Prog, now [][]uint32, c rune) (next [][]uint32, dead bool) {
	next = make([][]uint32, len(now))
	for i, p := range programs {
		var to []uint32
		for _, at := range now[i] {
			if in := &p.Inst[at]; in.Op != syntax.InstMatch && in.MatchRune(c) {
				to = append(to, in.Out)
			}
		}
		if next[i] = closure(p, to); len(next[i]) == 0 && i < len(programs)-1 {
			return nil, true
		}
	}
	return next, false
}

func accepted(programs []*syntax.Prog, now [][]uint32) bool {
	for i, p := range programs {
		accepts := slices.ContainsFunc(now[i], func(at uint32) bool { return p.Inst[at].Op == syntax.InstMatch })
		if accepts == (i == len(programs)-1) {
			return false
		}
	}
	return true
}

func stateKey(now [][]uint32) string {
	var out []byte
	for _, set := range now {
		out = binary.AppendUvarint(out, uint64(len(set)))
		for _, at := range set {
			out = binary.AppendUvarint(out, uint64(at))
		}
	}
	return string(out)
}
