package space

import (
	"encoding/binary"
	"errors"
	"slices"
)

// ErrTooMany says that values are so many, or so entangled, that what they tell apart could not be found out in time.
var ErrTooMany = errors.New("the values of the policies tell too many texts apart")

const (
	maxStates = 200_000
	maxSteps  = 60_000_000
)

// kindOfText is the texts that the same ones of some languages have, and the shortest of them.
type kindOfText struct {
	in      set
	example string
}

// kindsOfTexts takes all texts that are in each of some languages (must) and in none of others (not) apart by which of a list have them. It is exact: it walks through the
// product of the automata, shortest texts first.
func kindsOfTexts(list, must, not []*language) ([]kindOfText, error) {
	all := make([]*language, 0, len(list)+len(must)+len(not))
	all = append(append(append(all, must...), not...), list...)
	steps := alphabet(all)
	type place struct {
		states []int32 // of the languages that are alive, each after its index
		from   int
		by     rune
	}
	start := place{from: -1}
	for i, l := range all {
		if s := l.start(steps); s != dead {
			start.states = append(start.states, int32(i), s)
		} else if i < len(must) {
			return nil, nil
		}
	}
	places, seen := []place{start}, map[string]bool{}
	var scratch []int32
	var key []byte
	var out []kindOfText
	found := map[string]bool{}
	work := 0
	for at := 0; at < len(places); at++ {
		in, there := newSet(len(list)), 0
		for i := 0; i < len(places[at].states); i += 2 {
			index, s := int(places[at].states[i]), places[at].states[i+1]
			switch {
			case !all[index].ends[s]:
			case index < len(must):
				there++
			case index < len(must)+len(not):
				there = -len(all)
			default:
				in.add(index - len(must) - len(not))
			}
		}
		if k := in.key(); there == len(must) && !found[k] {
			found[k] = true
			var text []rune
			for p := at; places[p].from >= 0; p = places[p].from {
				text = append(text, places[p].by)
			}
			slices.Reverse(text)
			out = append(out, kindOfText{in, string(text)})
		}
		for step, r := range steps {
			scratch, key = scratch[:0], key[:0]
			alive := 0
			for i := 0; i < len(places[at].states); i += 2 {
				index := places[at].states[i]
				if s := all[index].step(places[at].states[i+1], step); s != dead {
					scratch = append(scratch, index, s)
					key = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(key, uint32(index)), uint32(s))
					if int(index) < len(must) {
						alive++
					}
				} else if int(index) < len(must) {
					break
				}
			}
			if work += len(places[at].states)/2 + 1; work > maxSteps || len(places) > maxStates {
				return nil, ErrTooMany
			}
			if alive == len(must) && !seen[string(key)] {
				seen[string(key)] = true
				places = append(places, place{slices.Clone(scratch), at, r})
			}
		}
	}
	return out, nil
}
