package status

import (
	"context"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// How enforcement is followed.
const (
	gather = 250 * time.Millisecond // what has changed is gathered, and most proxies have taken a policy by then
	again  = time.Second            // as long as a condition is not what it will be
	idle   = 30 * time.Second       // another Pilot may have gone, in whose place this one is to write
	// patience is for how long a number has to be another, or proxies have to lag that did not, until that is written down for a generation that
	// was spoken of before. Pods that come and go, and agents that connect anew, are no reason to write all policies over and over.
	patience = 10 * time.Second
)

// Census counts the proxies that have taken policies.
type Census interface {
	Leads() bool
	Count(ctx context.Context, policies []registry.PolicyRef, names int) []enforcement.Count
}

// Progress tells what has to be counted anew.
type Progress interface {
	News() <-chan struct{}
	Moved() []registry.PolicyRef
}

// Follow has policies' statuses say how many proxies enforce them, until ctx ends.
func (w *Writer) Follow(ctx context.Context, census Census, progress Progress) error {
	f := &follower{writer: w, census: census, open: map[registry.PolicyRef]time.Time{}}
	for {
		next := idle
		if len(f.open) > 0 {
			next = again
		}
		if !sleep(ctx, progress.News(), next) || !sleep(ctx, nil, gather) {
			return nil
		}
		f.look(ctx, progress.Moved(), time.Now())
	}
}

// sleep waits for as long, or for a word, and says whether ctx goes on.
func sleep(ctx context.Context, word <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-word:
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// follower knows which conditions are not what they should be.
type follower struct {
	writer *Writer
	census Census
	leads  bool
	looked time.Time                        // through all policies
	open   map[registry.PolicyRef]time.Time // since when the condition says something else, zero if it does not; of policies that are to be counted again
}

// look counts what has moved and what was open.
func (f *follower) look(ctx context.Context, moved []registry.PolicyRef, now time.Time) {
	led := f.leads
	if f.leads = f.census.Leads(); !f.leads {
		clear(f.open) // another Pilot sees to it
		return
	}
	if !led || now.Sub(f.looked) >= lookEvery {
		f.looked = now
		for kind, v := range registry.Verdicts(f.writer.snapshot()) {
			if kind.IsCounted() {
				moved = append(moved, registry.PolicyRef{Kind: kind, ID: v.Namespace + "/" + v.Name})
			}
		}
	}
	for _, ref := range moved {
		if _, ok := f.open[ref]; !ok {
			f.open[ref] = time.Time{}
		}
	}
	if len(f.open) == 0 {
		return
	}
	refs := slices.Collect(maps.Keys(f.open))
	for i, n := range f.census.Count(ctx, refs, maxNamed) {
		f.consider(refs[i], n, now)
	}
}

// consider has a count written down if it is time, and forgets the policy when there is nothing more to expect.
func (f *follower) consider(ref registry.PolicyRef, n enforcement.Count, now time.Time) {
	v, ok := registry.VerdictOn(f.writer.snapshot(), ref.Kind, ref.ID)
	if !ok {
		delete(f.open, ref)
		f.writer.settle(ref)
		return
	}
	u := f.writer.stored(ref.Kind, ref.ID)
	if n.Unsettled != "" || n.Generation != v.Generation || u == nil || u.GetGeneration() != v.Generation {
		return // a change is on its way
	}
	have, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions") // what is no list is replaced
	want, differs := WantedEnforced(v, n, have, now)
	if !differs {
		f.writer.settle(ref)
		if f.open[ref] = (time.Time{}); n.Taken == n.Proxies {
			delete(f.open, ref)
		}
		return
	}
	slow := hasty(of(EnforcedType, have), of(EnforcedType, want))
	if f.open[ref].IsZero() {
		f.open[ref] = now
	}
	if slow && now.Sub(f.open[ref]) < patience {
		return
	}
	turn := now
	if !slow {
		turn = now.Add(-time.Hour) // somebody may wait for it, and nobody for the others
	}
	f.writer.publish(ref, n, turn)
	f.open[ref] = now
}

// hasty says whether a condition may soon be again what it was, or still another.
func hasty(old, now map[string]any) bool {
	if old == nil || number(old["observedGeneration"]) != number(now["observedGeneration"]) {
		return false
	}
	return old["status"] == now["status"] || old["status"] == "True"
}

// number reads one of the types that numbers of JSON are given.
func number(v any) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	}
	return -1
}

// publish has a count be written.
func (w *Writer) publish(ref registry.PolicyRef, n enforcement.Count, turn time.Time) {
	w.mu.Lock()
	w.counts[ref] = n
	w.mu.Unlock()
	w.backlog.add(ref, turn)
}

// settle forgets a count.
func (w *Writer) settle(ref registry.PolicyRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.counts, ref)
}

func (w *Writer) count(ref registry.PolicyRef) (enforcement.Count, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.counts[ref]
	return n, ok
}

// next says when a policy may be written again, zero if it may be now, and then counts that as done.
func (w *Writer) next(ref registry.PolicyRef, now time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	for old, at := range w.written {
		if now.Sub(at) >= objectGap {
			delete(w.written, old) // a second's are few, as writes have a gap between them
		}
	}
	if at, ok := w.written[ref]; ok {
		return at.Add(objectGap)
	}
	w.written[ref] = now
	return time.Time{}
}
