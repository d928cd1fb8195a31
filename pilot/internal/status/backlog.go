package status

import (
	"sync"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Bounds of the backlog.
const (
	maxBacklog  = 4096 // what does not fit is found by the next look through all policies
	firstRetry  = time.Second
	longestWait = 5 * time.Minute
)

// backlog is the policies whose status is to be written. Each is in it once.
type backlog struct {
	random func() float64 // in [0, 1)
	wake   chan struct{}  // capacity one

	mu    sync.Mutex
	due   map[registry.PolicyRef]time.Time
	tries map[registry.PolicyRef]int // of those whose last write failed
}

func newBacklog(random func() float64) *backlog {
	return &backlog{random: random, wake: make(chan struct{}, 1), due: map[registry.PolicyRef]time.Time{}, tries: map[registry.PolicyRef]int{}}
}

// add notes that a policy is to be written, by its turn; one that failed before keeps waiting for its next try.
func (b *backlog) add(it registry.PolicyRef, turn time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	due, ok := b.due[it]
	if ok && (b.tries[it] > 0 || !turn.Before(due)) || !ok && len(b.due) >= maxBacklog {
		return
	}
	b.due[it] = turn
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// next takes out the policy that has been due longest, or says how long it is until one will be.
func (b *backlog) next(now time.Time) (it registry.PolicyRef, in time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var first time.Time
	for i, due := range b.due {
		if !ok || due.Before(first) {
			it, first, ok = i, due, true
		}
	}
	switch {
	case !ok:
		return registry.PolicyRef{}, time.Hour, false
	case first.After(now):
		return registry.PolicyRef{}, first.Sub(now), false
	}
	delete(b.due, it)
	return it, 0, true
}

// putOff has a policy wait, since it has been written a moment ago.
func (b *backlog) putOff(it registry.PolicyRef, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.due[it] = until
}

// succeeded forgets the failures of a policy.
func (b *backlog) succeeded(it registry.PolicyRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.tries, it)
}

// failed puts a policy off: longer each time, and not at the same moment as others, nor as other Pilots.
func (b *backlog) failed(it registry.PolicyRef, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := min(longestWait, firstRetry<<min(b.tries[it], 10))
	b.due[it] = now.Add(wait/2 + time.Duration(b.random()*float64(wait)))
	b.tries[it]++
}

func (b *backlog) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.due)
}
