// Package fleet is the agents of many nodes, each with the code that agents have, and many simulated proxies: each a delta-ADS stream to its
// node's agent, without a socket, that asks as an Envoy asks and keeps of the answers what the next question needs.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Member is the pod that a proxy stands in.
type Member struct{ Namespace, Pod, UID, IP, Node, ServiceAccount, Group string }

// Envoy is the ID that the pod's Envoy has.
func (m Member) Envoy() string {
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", m.IP, m.Pod, m.Namespace, m.Namespace)
}

// Fleet is the proxies and their agents.
type Fleet struct {
	// Tap, if set before Connect, is shown every response; proxies call it from goroutines of their own.
	Tap func(Member, *discovery.DeltaDiscoveryResponse)

	proxies []*Proxy
	agents  map[string]*agent // by node
	watch   atomic.Pointer[Watch]
	refs    sync.Map // version of a resource → names it refers to

	traffic *counters
	heard   atomic.Int64 // when the last response came

	session context.CancelCauseFunc
	streams sync.WaitGroup
}

// New returns a fleet that is not connected.
func New(members []Member, dial Dialer) *Fleet {
	f := &Fleet{session: func(error) {}, traffic: newCounters(), agents: map[string]*agent{}}
	for _, m := range members {
		a := f.agents[m.Node]
		if a == nil {
			a = newAgent(f, m.Node, dial)
			f.agents[m.Node] = a
		}
		a.Add(m.UID, m.Namespace+"/"+m.Pod, m.Namespace+"/"+m.ServiceAccount)
		f.proxies = append(f.proxies, newProxy(f, m, a))
	}
	return f
}

// Connect opens all streams at once and returns when every agent has heard Pilot's first word and every proxy has everything it asked for, and when
// the last of them had. Streams go on until Disconnect or the end of ctx.
func (f *Fleet) Connect(ctx context.Context) (time.Time, error) {
	ctx, f.session = context.WithCancelCause(ctx)
	settled := make(chan time.Time, len(f.proxies)+len(f.agents))
	for _, a := range f.agents {
		f.streams.Go(func() {
			if err := a.serve(ctx, settled); ctx.Err() == nil {
				f.session(fmt.Errorf("agent of node %s: %w", a.name, err))
			}
		})
	}
	for _, p := range f.proxies {
		f.streams.Go(func() {
			if err := p.serve(ctx, settled); ctx.Err() == nil {
				f.session(fmt.Errorf("proxy of pod %s/%s: %w", p.Namespace, p.Pod, err))
			}
		})
	}
	var last time.Time
	for range len(f.proxies) + len(f.agents) {
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

// Disconnect ends all streams; what agents and proxies know remains.
func (f *Fleet) Disconnect() {
	f.session(errDisconnected)
	f.streams.Wait()
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
