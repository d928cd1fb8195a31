// Package fleet is many simulated proxies: each a delta-ADS stream over its pod's socket of the node's agent, that asks as Envoy asks, and
// keeps of the answers what the next question needs.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Member is the pod that a proxy stands in.
type Member struct {
	Namespace, Pod, UID, IP  string
	ServiceAccount, Workload string
	Node                     string // of the cluster
	Socket                   string // by which it reaches the node's agent
}

// maxResponse is more than an agent sends at once.
const maxResponse = 64 << 20

func (m Member) dial(counted *counters) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+m.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStatsHandler(counted),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)))
}

// NodeID is that of the pod's Envoy.
func (m Member) NodeID() string {
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", m.IP, m.Pod, m.Namespace, m.Namespace)
}

// Fleet is the proxies.
type Fleet struct {
	// Tap, if set before Connect, is shown every response; proxies call it from goroutines of their own.
	Tap func(Member, *discovery.DeltaDiscoveryResponse)

	proxies []*Proxy
	watch   atomic.Pointer[Watch]
	refs    sync.Map // version of a resource → names it refers to

	traffic *counters
	heard   atomic.Int64 // when the last response came

	session context.CancelCauseFunc
	streams sync.WaitGroup
}

// New returns a fleet that is not connected.
func New(members []Member) *Fleet {
	f := &Fleet{session: func(error) {}, traffic: newCounters()}
	for _, m := range members {
		f.proxies = append(f.proxies, newProxy(f, m))
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

// Quiet waits until no response has come for a while.
func (f *Fleet) Quiet(ctx context.Context, while time.Duration) error {
	begin := time.Now()
	for {
		since := time.Since(begin)
		if heard := f.Heard(); heard.After(begin) {
			since = time.Since(heard)
		}
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

// Heard is when the last response came.
func (f *Fleet) Heard() time.Time { return time.Unix(0, f.heard.Load()) }
