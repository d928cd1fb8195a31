package secrets

import (
	"cmp"
	"container/heap"
	"sync"
	"time"
)

// rank says what goes before what. A Secret is written at the rank of its reason, whatever else waits.
type rank int

const (
	urgent  rank = iota // something has happened to it just now: a new account, a deleted or changed Secret
	look                // nobody knows yet whether anything is to be done; looking costs no call
	missing             // accounts that were found without a Secret, at a start or when their namespace takes part
	routine             // renewals, new signers and bundles, by the end of the certificate they replace
)

// turn is an account's place in the order.
type turn struct {
	rank rank
	end  time.Time // of the certificate that the Secret has; the zero time comes first
	seq  uint64    // among equals, the first come goes first
}

func (a turn) compare(b turn) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), a.end.Compare(b.end), cmp.Compare(a.seq, b.seq))
}

// order is the inside of the work queue (workqueue.Queue): accounts in the order of their turns. The work queue sees to
// it that an account waits once and is worked on by one at a time.
type order struct {
	mu      sync.Mutex
	asked   map[key]turn // as asked for, until taken
	running map[key]rank // of what was taken, until done
	waiting []key        // a heap by turn
	place   map[key]int  // in waiting
	seq     uint64
}

func newOrder() *order {
	return &order{asked: map[key]turn{}, running: map[key]rank{}, place: map[key]int{}}
}

// ask gives the account a turn, if it has no earlier one. The account is then to be added to the work queue. (One that
// is taken in between comes once more, without a turn, which is the first.)
func (o *order) ask(k key, r rank, end time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	t := turn{rank: r, end: end, seq: o.seq}
	if was, ok := o.asked[k]; ok && was.compare(t) < 0 {
		return
	}
	o.asked[k] = t
	if i, ok := o.place[k]; ok {
		heap.Fix((*byTurn)(o), i)
	}
}

// rankOf returns at which rank the account is being worked on.
func (o *order) rankOf(k key) rank {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.running[k]
}

// Push implements workqueue.Queue.
func (o *order) Push(k key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	heap.Push((*byTurn)(o), k)
}

// Touch implements workqueue.Queue; ask has done what there is to do.
func (o *order) Touch(key) {}

// Len implements workqueue.Queue.
func (o *order) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}

// Pop implements workqueue.Queue.
func (o *order) Pop() key {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := heap.Pop((*byTurn)(o)).(key)
	o.running[k] = o.asked[k].rank
	delete(o.asked, k)
	return k
}

// done forgets at which rank the account was worked on.
func (o *order) done(k key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.running, k)
}

// byTurn implements heap.Interface with order's lock held.
type byTurn order

func (h *byTurn) Len() int { return len(h.waiting) }
func (h *byTurn) Less(i, j int) bool {
	return h.asked[h.waiting[i]].compare(h.asked[h.waiting[j]]) < 0
}
func (h *byTurn) Swap(i, j int) {
	h.waiting[i], h.waiting[j] = h.waiting[j], h.waiting[i]
	h.place[h.waiting[i]], h.place[h.waiting[j]] = i, j
}
func (h *byTurn) Push(x any) {
	h.place[x.(key)] = len(h.waiting)
	h.waiting = append(h.waiting, x.(key))
}
func (h *byTurn) Pop() any {
	last := len(h.waiting) - 1
	k := h.waiting[last]
	h.waiting = h.waiting[:last]
	delete(h.place, k)
	return k
}
