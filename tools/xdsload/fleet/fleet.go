// Package fleet is many simulated proxies: each a delta-ADS stream over its own mutual TLS connection, that asks as the
// node agent asks on behalf of an Envoy, and keeps of the answers what the next question needs.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// Member is the pod that a proxy stands in.
type Member struct{ Namespace, Pod, IP, ServiceAccount, Group string }

// Node is the ID that the pod's Envoy has.
func (m Member) Node() string {
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", m.IP, m.Pod, m.Namespace, m.Namespace)
}

// Traffic is what the proxies were sent.
type Traffic struct {
	Bytes     int64 `json:"bytes"` // on the wire, within TLS
	Responses int64 `json:"responses"`
	Resources int64 `json:"resources"`
	Removals  int64 `json:"removals"`
}

// Fleet is the proxies.
type Fleet struct {
	proxies []*Proxy
	watch   atomic.Pointer[Watch]
	refs    sync.Map // version of a resource → names it refers to

	bytes, responses, resources, removals atomic.Int64
	heard                                 atomic.Int64 // when the last response came

	session context.CancelCauseFunc
	streams sync.WaitGroup
}

// Dialer connects a proxy to Pilot as its pod; the options must be used.
type Dialer func(m Member, options ...grpc.DialOption) (*grpc.ClientConn, error)

// New returns a fleet that is not connected.
func New(members []Member, dial Dialer) *Fleet {
	f := &Fleet{session: func(error) {}}
	for _, m := range members {
		f.proxies = append(f.proxies, newProxy(f, m, dial))
	}
	return f
}

// Connect opens all streams at once and returns when every proxy has everything it asked for, and when the last of them
// had. Streams go on until Disconnect or the end of ctx.
func (f *Fleet) Connect(ctx context.Context) (time.Time, error) {
	ctx, f.session = context.WithCancelCause(ctx)
	settled := make(chan time.Time, len(f.proxies))
	for _, p := range f.proxies {
		f.streams.Go(func() {
			if err := p.serve(ctx, settled); ctx.Err() == nil {
				f.session(fmt.Errorf("proxy of pod %s/%s: %w", p.Namespace, p.Pod, err))
			}
		})
	}
	var last time.Time
	for range f.proxies {
		select {
		case at := <-settled:
			if at.After(last) {
				last = at
			}
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
	return last, nil
}

var errDisconnected = errors.New("the fleet was disconnected")

// Disconnect ends all streams; what the proxies know remains.
func (f *Fleet) Disconnect() {
	f.session(errDisconnected)
	f.streams.Wait()
}

// Traffic returns what was sent so far.
func (f *Fleet) Traffic() Traffic {
	return Traffic{f.bytes.Load(), f.responses.Load(), f.resources.Load(), f.removals.Load()}
}

// Since returns what was sent after an earlier count.
func (t Traffic) Since(before Traffic) Traffic {
	return Traffic{t.Bytes - before.Bytes, t.Responses - before.Responses, t.Resources - before.Resources, t.Removals - before.Removals}
}

// Quiet waits until no response has come for a while.
func (f *Fleet) Quiet(ctx context.Context, while time.Duration) error {
	begin := time.Now().UnixNano()
	for {
		since := time.Since(time.Unix(0, max(begin, f.heard.Load())))
		if since >= while {
			return nil
		}
		select {
		case <-time.After(while - since):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// counter counts bytes as they come off the wire.
type counter struct{ bytes *atomic.Int64 }

func (c counter) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		c.bytes.Add(int64(in.WireLength))
	}
}
func (counter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (counter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (counter) HandleConn(context.Context, stats.ConnStats)                       {}
