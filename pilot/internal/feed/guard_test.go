package feed

import (
	"fmt"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

func TestRelistThatEmptiesTheWorldIsHeld(t *testing.T) {
	now := time.Now()
	later := now.Add(settleTime)
	size := func(registry.Kind) int { return 10 }
	suspect := func(n int) *guard {
		g := newGuard()
		for i := range n {
			g.suspect(eventKey{registry.Services, fmt.Sprint(i)}, now)
		}
		return g
	}
	g := suspect(6)
	if released, held := g.judge(now, size); len(released) != 0 || held != 0 {
		t.Error("judged before the list was through")
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 6 {
		t.Errorf("released %d, held %d of 6", len(released), held)
	}
	g.clear(eventKey{registry.Services, "0"}) // it is there after all
	if released, held := g.judge(later, size); len(released) != 5 || held != 0 {
		t.Errorf("half of the world: released %d, held %d", len(released), held)
	}
	g = suspect(9)
	g.judge(later, size)
	if got := g.held(); len(got) != 1 || got[0].Kind != registry.Services.String() || got[0].Count != 9 || len(got[0].Some) != 9 || got[0].Some[0] != "0" {
		t.Errorf("held: %+v", got)
	}
	if err := g.confirm(8); err == nil {
		t.Error("confirmed what nobody has seen")
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 9 {
		t.Errorf("after a refused confirmation: released %d, held %d", len(released), held)
	}
	if err := g.confirm(9); err != nil {
		t.Error(err)
	}
	if released, _ := g.judge(later, size); len(released) != 9 {
		t.Errorf("confirmed: released %d of 9", len(released))
	}
	if err := g.confirm(0); err == nil {
		t.Error("there is nothing to confirm")
	}
	g = newGuard()
	for i := range 6 {
		g.suspect(eventKey{registry.Policies, fmt.Sprint(i)}, now)
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 6 {
		t.Errorf("policies: released %d, held %d of 6", len(released), held)
	}
	g.suspect(eventKey{registry.Services, "late"}, later)
	if released, held := g.judge(later, size); len(released) != 0 || held != 7 || g.settleIn(later) > settleTime {
		t.Errorf("more while some are held: released %d, held %d, settles in %v", len(released), held, g.settleIn(later))
	}
	if released, _ := suspect(3).judge(later, size); len(released) != 3 {
		t.Errorf("an ordinary relist: released %d of 3", len(released))
	}
}
