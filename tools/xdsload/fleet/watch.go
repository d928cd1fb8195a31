package fleet

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Watch waits until every affected proxy has been sent a resource that holds a marker.
type Watch struct {
	marker   []byte
	affected map[*Proxy]bool
	left     atomic.Int32
	last     atomic.Int64 // when the last of them had it
	done     chan struct{}
	strays   atomic.Int32
}

// Expect begins to look for the marker in what proxies are sent. There is one watch at a time.
func (f *Fleet) Expect(marker string, affects func(Member) bool) *Watch {
	w := &Watch{marker: []byte(marker), affected: map[*Proxy]bool{}, done: make(chan struct{})}
	for _, p := range f.proxies {
		if affects(p.Member) {
			w.affected[p] = true
		}
	}
	w.left.Store(int32(len(w.affected)))
	f.watch.Store(w)
	return w
}

// look is called by a proxy for each response, from one goroutine a proxy.
func (w *Watch) look(p *Proxy, resp *discovery.DeltaDiscoveryResponse) {
	if p.seen == w {
		return
	}
	for _, r := range resp.GetResources() {
		if !bytes.Contains(r.GetResource().GetValue(), w.marker) {
			continue
		}
		p.seen = w
		if !w.affected[p] {
			w.strays.Add(1)
			return
		}
		now := time.Now().UnixNano()
		if w.left.Add(-1) == 0 {
			w.last.Store(now)
			close(w.done)
		}
		return
	}
}

// Wait returns when the last affected proxy had the resource.
func (w *Watch) Wait(ctx context.Context) (time.Time, error) {
	select {
	case <-w.done:
		return time.Unix(0, w.last.Load()), nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%d of %d affected proxies have not heard of %s: %w", w.left.Load(), len(w.affected), w.marker, context.Cause(ctx))
	}
}

// Affected is the number of proxies the change is for; Strays of those others that were sent it all the same.
func (w *Watch) Affected() int { return len(w.affected) }

// Strays is the number of proxies that were sent the change though it is not for them.
func (w *Watch) Strays() int { return int(w.strays.Load()) }
