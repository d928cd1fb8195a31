package feed

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// settleTime is how long the removals of a relist are collected before they are judged together.
const settleTime = time.Second

// guard holds back the removals of a relist that would take most of the world away at one stroke. An API server that has
// just been restored, or that has not read everything yet, lists fewer objects than there are; proxies must not lose
// their endpoints or their policies for it.
type guard struct {
	suspects  map[eventKey]bool
	due       time.Time // when the latest suspects are judged; zero when all have been
	holding   bool
	confirmed bool
}

func newGuard() *guard { return &guard{suspects: map[eventKey]bool{}} }

func (g *guard) suspect(k eventKey, now time.Time) {
	g.suspects[k] = true
	g.due = now.Add(settleTime)
}

// clear forgets a suspicion: the object has been seen again, or seen going.
func (g *guard) clear(k eventKey) { delete(g.suspects, k) }

// settleIn says when there is something to judge; an hour stands for not at all.
func (g *guard) settleIn(now time.Time) time.Duration {
	if len(g.suspects) == 0 || g.due.IsZero() {
		return time.Hour
	}
	return max(time.Millisecond, g.due.Sub(now))
}

// judge returns the removals to let through, and how many are held. size tells how many objects of a kind are stored.
func (g *guard) judge(now time.Time, size func(registry.Kind) int) (released []eventKey, held int) {
	if len(g.suspects) == 0 {
		g.holding, g.confirmed, g.due = false, false, time.Time{}
		return nil, 0
	}
	if now.Before(g.due) && !g.confirmed {
		if g.holding {
			held = len(g.suspects)
		}
		return nil, held
	}
	g.due = time.Time{}
	lost := map[registry.Kind]int{}
	for k := range g.suspects {
		lost[k.kind]++
	}
	g.holding = false
	for _, kind := range registry.Kinds() {
		if n := size(kind); lost[kind] >= 5 && lost[kind]*2 > n {
			g.holding = true
		}
	}
	if g.holding && !g.confirmed {
		return nil, len(g.suspects)
	}
	for k := range g.suspects {
		released = append(released, k)
	}
	clear(g.suspects)
	g.holding, g.confirmed = false, false
	return released, 0
}

// Held are the removals of one kind that wait for an operator's word.
type Held struct {
	Kind  string   `json:"kind"`
	Count int      `json:"count"`
	Some  []string `json:"some"` // of their names, the first in order
}

// heldShown is how many names of a kind are shown.
const heldShown = 10

// held returns what waits, in the order of its kinds.
func (g *guard) held() []Held {
	names := map[string][]string{}
	if g.holding {
		for k := range g.suspects {
			names[k.kind.String()] = append(names[k.kind.String()], k.id)
		}
	}
	out := []Held{}
	for _, kind := range slices.Sorted(maps.Keys(names)) {
		slices.Sort(names[kind])
		out = append(out, Held{kind, len(names[kind]), names[kind][:min(heldShown, len(names[kind]))]})
	}
	return out
}

// confirm lets what is held through, if it is so many removals as whoever confirms has seen.
func (g *guard) confirm(seen int) error {
	switch {
	case !g.holding || len(g.suspects) == 0:
		return errors.New("no removals are held")
	case seen != len(g.suspects):
		return fmt.Errorf("%d removals are held now, not %d: look again", len(g.suspects), seen)
	}
	g.confirmed = true
	return nil
}
