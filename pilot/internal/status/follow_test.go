package status

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// proxies is what a census of a world finds that a test makes. All policies select the same proxies.
type proxies struct {
	lab        *lab
	mu         sync.Mutex // of what the follower and the test look at
	proxies    int
	taken      int
	generation int64
	leads      bool
	unsettled  string
	counted    int
	news       chan struct{}
	moved      []registry.PolicyRef
}

func (p *proxies) Leads() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leads
}

func (p *proxies) News() <-chan struct{} { return p.news }
func (p *proxies) Moved() (out []registry.PolicyRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, p.moved = p.moved, nil
	return out
}

func (p *proxies) Count(_ context.Context, refs []registry.PolicyRef, _ int) (out []enforcement.Count) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counted += len(refs)
	for range refs {
		e := push.Enforcement{Generation: p.generation, Proxies: p.proxies, Taken: p.taken}
		for i := range min(maxNamed, p.proxies-p.taken) {
			e.Lagging = append(e.Lagging, push.Laggard{Proxy: fmt.Sprintf("pod-%d.a", i)})
		}
		out = append(out, enforcement.Count{Enforcement: e, Unsettled: p.unsettled})
	}
	return out
}

// set changes what a census finds.
func (p *proxies) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *proxies) countedNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counted
}

// tell has the follower look at policies.
func (p *proxies) tell(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		p.moved = append(p.moved, registry.PolicyRef{Kind: registry.Policies, ID: "a/" + n})
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// follows runs a follower until the test's end. It is called in a bubble, whose goroutines take turns with the test only while that waits.
func (l *lab) follows() *proxies {
	p := &proxies{lab: l, leads: true, generation: 1, news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	go func() { done <- l.writer.Follow(ctx, p, p) }()
	end := l.end
	l.end = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
		end()
	}
	return p
}

// enforced returns a policy's condition as "<status> <generation> <message>".
func (l *lab) enforced(name string) string {
	l.t.Helper()
	if c := of(EnforcedType, l.conditions(name)); c != nil {
		return fmt.Sprint(c["status"], " ", c["observedGeneration"], " ", c["message"])
	}
	return ""
}

func (l *lab) says(name, want string) {
	l.t.Helper()
	if got := l.enforced(name); got != want {
		l.t.Errorf("%s: %q, want %q", name, got, want)
	}
}

func TestConditionSaysHowManyProxiesEnforceAPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		l.apply(policy("p", "DENY", 1))
		p.set(func() { p.proxies, p.taken = 3, 0 })
		p.tell("p")
		time.Sleep(gather + time.Millisecond)
		l.says("p", "False 1 enforced by 0 of 3 proxies; not yet by pod-0.a, pod-1.a, pod-2.a")
		p.set(func() { p.taken = 3 })
		p.tell()
		time.Sleep(2 * objectGap)
		l.says("p", "True 1 enforced by 3 of 3 proxies")

		l.apply(policy("p", "ALLOW", 2))
		p.set(func() { p.generation, p.taken = 2, 2 })
		p.tell("p")
		time.Sleep(2 * objectGap)
		l.says("p", "False 2 enforced by 2 of 3 proxies; not yet by pod-0.a")
		p.set(func() { p.taken = 3 })
		time.Sleep(3 * time.Second) // without a word: it is counted again as long as it is not done
		l.says("p", "True 2 enforced by 3 of 3 proxies")
		n := p.countedNow()
		time.Sleep(lookEvery - time.Minute)
		if now := p.countedNow(); now != n {
			t.Errorf("it is counted %d times more while nothing happens", now-n)
		}
		if n := l.writes.Load(); n != 4 {
			t.Errorf("%d writes, want 4", n)
		}
	})
}

// A thousand proxies take a policy one after the other, and each says so.
func TestManyAcknowledgementsAreFewWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		l.apply(policy("p", "DENY", 1))
		p.set(func() { p.proxies = 1000 })
		p.tell("p")
		for range 1000 {
			p.set(func() { p.taken++ })
			p.tell()
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		l.says("p", "True 1 enforced by 1000 of 1000 proxies")
		if n := l.writes.Load(); n != 2 {
			t.Errorf("%d writes, want 2: the first count, and the last", n)
		}
	})
}

// Pods come and go all the time, and agents connect anew.
func TestNumbersThatChangeAllTheTimeAreWrittenRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		l.apply(policy("p", "DENY", 1))
		p.set(func() { p.proxies, p.taken = 1, 1 })
		p.tell("p")
		time.Sleep(2 * time.Second)
		for i := range 100 {
			p.set(func() { p.proxies = 2 + i%5 })
			p.set(func() { p.taken = p.proxies - 1 }) // the one that has just come
			p.tell("p")
			time.Sleep(500 * time.Millisecond)
			p.set(func() { p.taken = p.proxies })
			p.tell("p")
			time.Sleep(500 * time.Millisecond)
		}
		if n := l.writes.Load(); n > 12 {
			t.Errorf("%d writes in 100 s", n)
		}
		p.set(func() { p.proxies, p.taken = 7, 7 })
		p.tell("p")
		time.Sleep(2 * patience)
		l.says("p", "True 1 enforced by 7 of 7 proxies")
		p.set(func() { p.taken = 6 })
		p.tell("p")
		time.Sleep(patience / 2)
		l.says("p", "True 1 enforced by 7 of 7 proxies")
		time.Sleep(patience)
		l.says("p", "False 1 enforced by 6 of 7 proxies; not yet by pod-0.a")
	})
}

// One of several Pilots writes, and it is the next one's turn when that has gone.
func TestOnlyTheOneThatLeadsWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		p.set(func() { p.leads = false })
		l.apply(policy("p", "DENY", 1))
		p.set(func() { p.proxies, p.taken = 1, 1 })
		p.tell("p")
		time.Sleep(time.Hour)
		l.says("p", "")
		p.set(func() { p.leads = true })
		time.Sleep(2 * idle)
		l.says("p", "True 1 enforced by 1 of 1 proxies")
	})
}

func TestWhatIsOfAnotherGenerationIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		p.set(func() { p.proxies, p.taken, p.generation = 1, 1, 2 })
		l.apply(policy("p", "DENY", 1))
		p.tell("p")
		time.Sleep(time.Minute)
		l.says("p", "")
		p.set(func() { p.generation, p.unsettled = 1, "another Pilot has another" })
		time.Sleep(time.Minute)
		l.says("p", "")
		p.set(func() { p.unsettled = "" })
		time.Sleep(2 * time.Second)
		l.says("p", "True 1 enforced by 1 of 1 proxies")
	})
}

// An object whose spec changes all the time is written each second at most.
func TestAPolicyIsWrittenOnceASecondAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		p := l.follows()
		p.set(func() { p.proxies, p.taken = 1, 1 })
		for i := range 100 {
			p.set(func() { p.generation = int64(i + 1) })
			l.apply(policy("p", []string{"CUSTOM", "DENY"}[i%2], p.generation))
			p.tell("p")
			time.Sleep(100 * time.Millisecond)
		}
		if n := l.writes.Load(); n > 11 {
			t.Errorf("%d writes in 10 s", n)
		}
		time.Sleep(5 * time.Second)
		l.says("p", "True 100 enforced by 1 of 1 proxies")
	})
}

func TestWhatTheConditionSays(t *testing.T) {
	well, idle, bad := verdict(3), verdict(3), verdict(3, authz.Problem{Field: "spec.action", Reason: "no"})
	idle.Idle = true
	for name, c := range map[string]struct {
		verdict                 registry.Verdict
		taken, proxies          int
		status, reason, message string
	}{
		"all":          {well, 2, 2, "True", Enforced, "enforced by 2 of 2 proxies"},
		"none":         {well, 0, 0, "Unknown", NoProxies, "enforced by 0 of 0 proxies: it selects no pod whose proxy is connected"},
		"many lag":     {well, 1, 9, "False", ProxiesLag, "enforced by 1 of 9 proxies; not yet by a.x, b.x, c.x and 5 more"},
		"on trial":     {idle, 2, 2, "False", NoEffect, "it denies nothing, being on trial, without rules or overruled; known to 2 of 2 proxies"},
		"fails closed": {bad, 2, 2, "True", Enforced, "enforced by 2 of 2 proxies, as far as it can be (see bulwark.dev/Enforceable)"},
	} {
		n := enforcement.Count{Enforcement: push.Enforcement{Generation: 3, Proxies: c.proxies, Taken: c.taken, Lagging: []push.Laggard{{Proxy: "a.x"}, {Proxy: "b.x"}, {Proxy: "c.x"}}}}
		got, _ := WantedEnforced(c.verdict, n, nil, noon)
		want := []any{map[string]any{"type": EnforcedType, "status": c.status, "reason": c.reason, "message": c.message, "observedGeneration": int64(3), "lastTransitionTime": "2026-01-01T12:00:00Z"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
