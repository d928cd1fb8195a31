package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	maxResponse = 64 << 20 // of one response of Pilot
	// Envoy answers within milliseconds. One that does not is stuck, and its pod should not keep Pilot from sending what
	// a restarted one will need.
	answerWithin = 30 * time.Second
	longLived    = 10 * time.Second // a stream that lasted this long was a good one: the next retry is quick
)

// Run keeps a stream to Pilot until ctx ends, from when Envoy first asks for something. Losing it changes nothing for
// Envoy.
func (r *Relay) Run(ctx context.Context) {
	for r.cache.empty() {
		select {
		case <-r.cache.wake:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-r.pod.Ready(): // Pilot lets in only who has an SVID
	case <-ctx.Done():
		return
	}
	conn, err := r.dial()
	if err != nil {
		r.log.Error("connecting to Pilot", "error", err)
		return
	}
	defer conn.Close()
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier, retry.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 2, 0.5
	for {
		began := r.config.Clock.Now()
		err := r.stream(ctx, conn)
		if ctx.Err() != nil {
			return
		}
		if r.config.Clock.Since(began) > longLived {
			retry.Reset()
		}
		wait := retry.NextBackOff()
		r.log.Warn("stream to Pilot ended; the proxy keeps its configuration", "error", err, "retryIn", wait.String())
		timer := r.config.Clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// dial returns a connection as the pod itself: Pilot sees the pod's identity, not the agent's.
func (r *Relay) dial() (*grpc.ClientConn, error) {
	pilot, err := spiffe.New(r.config.TrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return nil, err
	}
	options := append(mtls.DialOptions(mtls.Client(r.pod, r.config.Bundle, mtls.OneOf(pilot))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)))
	conn, err := grpc.NewClient(r.config.Pilot, options...)
	if err != nil {
		return nil, fmt.Errorf("Pilot's address %q: %w", r.config.Pilot, err)
	}
	return conn, nil
}

// upstream is one stream to Pilot.
type upstream struct {
	*Relay
	rpc       discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	unacked   map[string]*response // the last response of each type until it is answered
	nodeKnown bool
}

type response struct {
	nonce string
	since time.Time
}

func (r *Relay) stream(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	u := &upstream{Relay: r, rpc: rpc, unacked: map[string]*response{}}
	for _, req := range r.cache.initial() {
		if err := u.send(req); err != nil {
			return err
		}
	}
	responses, failed, done := make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			resp, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-done }()
	defer cancel()
	return u.loop(ctx, responses, failed)
}

// loop moves responses to Envoy, and Envoy's subscriptions and answers to Pilot. An answer goes up when Envoy has given
// it, so that Pilot knows what proxies run with. When that is shows in the state of Envoy's stream a moment after Envoy
// has spoken, so it is looked at a few times.
func (u *upstream) loop(ctx context.Context, responses <-chan *discovery.DeltaDiscoveryResponse, failed <-chan error) error {
	const shortest, longest = time.Millisecond, 100 * time.Millisecond
	look := shortest
	for {
		for _, req := range u.cache.pending() {
			if err := u.send(req); err != nil {
				return err
			}
		}
		if err := u.answer(); err != nil {
			return err
		}
		var again <-chan time.Time
		if len(u.unacked) > 0 {
			again = time.After(look)
		}
		select {
		case resp := <-responses:
			changed := u.cache.apply(resp)
			u.unacked[resp.GetTypeUrl()] = &response{nonce: resp.GetNonce(), since: u.config.Clock.Now()}
			u.dirty(resp.GetTypeUrl(), changed)
			look = shortest
		case <-u.cache.wake:
		case <-u.heard:
			look = shortest
		case <-again:
			look = min(2*look, longest)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (u *upstream) answer() error {
	for url, resp := range u.unacked {
		done, refusal := u.answered(url)
		if !done && u.config.Clock.Since(resp.since) < answerWithin {
			continue
		}
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: resp.nonce}
		if refusal != "" {
			u.log.Warn("the proxy refused configuration", "type", url, "reason", refusal)
			req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: refusal}
		}
		delete(u.unacked, url)
		if err := u.send(req); err != nil {
			return err
		}
	}
	return nil
}

func (u *upstream) send(req *discovery.DeltaDiscoveryRequest) error {
	if !u.nodeKnown {
		req.Node, u.nodeKnown = u.lastNode(), true
	}
	return u.rpc.Send(req)
}
