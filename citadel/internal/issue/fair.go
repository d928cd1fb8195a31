package issue

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

const (
	// concurrent bounds the calls that are worked on: some may wait for the API server.
	concurrent = 64
	// fromOne is how many of them one address may hold, and waitingOne how many more of it may wait.
	fromOne    = concurrent / 4
	waitingOne = 256
	waitingAll = 4096
	retryQueue = time.Second
)

// turns shares out what is worked on at a time among the addresses that calls come from, before anything is known of
// them. A free place goes to the address that holds the fewest, so a storm from one node delays that node alone.
type turns struct {
	mu      sync.Mutex
	held    map[string]int // by address; only those that hold a place
	waiting []*turn        // in the order they came
	queued  map[string]int // by address; only those that wait
	all     int            // places held
	refused *prometheus.CounterVec
}

type turn struct {
	from    string
	granted chan struct{}
}

func newTurns(refused *prometheus.CounterVec) *turns {
	return &turns{held: map[string]int{}, queued: map[string]int{}, refused: refused}
}

// take waits for a place until ctx ends. The caller gives it back with the function that is returned.
func (t *turns) take(ctx context.Context, from string) (done func(), err error) {
	t.mu.Lock()
	if t.all < concurrent && t.held[from] < fromOne {
		t.hold(from)
		t.mu.Unlock()
		return func() { t.giveBack(from) }, nil
	}
	if t.queued[from] >= waitingOne || len(t.waiting) >= waitingAll {
		t.mu.Unlock()
		t.refused.WithLabelValues("address").Inc()
		return nil, tooMany("Citadel has too many requests of "+from, retryQueue)
	}
	mine := &turn{from, make(chan struct{})}
	t.waiting = append(t.waiting, mine)
	t.queued[from]++
	t.mu.Unlock()
	select {
	case <-mine.granted:
		return func() { t.giveBack(from) }, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting, mine)
	if i >= 0 {
		t.leave(i)
	}
	t.mu.Unlock()
	if i < 0 { // it was granted at the same moment
		t.giveBack(from)
	}
	return nil, status.FromContextError(ctx.Err()).Err()
}

// giveBack frees a place and gives it to who waits.
func (t *turns) giveBack(from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all--
	if t.held[from]--; t.held[from] == 0 {
		delete(t.held, from)
	}
	next := -1
	for i, w := range t.waiting {
		if t.held[w.from] < fromOne && (next < 0 || t.held[w.from] < t.held[t.waiting[next].from]) {
			next = i
		}
	}
	if next < 0 {
		return
	}
	w := t.waiting[next]
	t.leave(next)
	t.hold(w.from)
	close(w.granted)
}

// hold and leave are called with mu held.
func (t *turns) hold(from string) {
	t.held[from]++
	t.all++
}

func (t *turns) leave(i int) {
	from := t.waiting[i].from
	t.waiting = slices.Delete(t.waiting, i, i+1)
	if t.queued[from]--; t.queued[from] == 0 {
		delete(t.queued, from)
	}
}
