package registry

import (
	"time"
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
func (g *guard) judge(now time.Time, size func(Kind) int) (released []eventKey, held int) {
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
	lost := map[Kind]int{}
	for k := range g.suspects {
		lost[k.kind]++
	}
	g.holding = false
	for _, kind := range kinds {
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

func (g *guard) held() map[string]int {
	out := map[string]int{}
	if g.holding {
		for k := range g.suspects {
			out[string(k.kind)]++
		}
	}
	return out
}

func (g *guard) confirm() { g.confirmed = g.holding }
