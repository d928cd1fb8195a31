package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	maxResponse = 64 << 20 // of one response of Pilot
	tidyEvery   = time.Minute
	longLived   = 10 * time.Second // a stream that lasted this long was a good one: the next retry is quick
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

func (r *Relay) stream(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	select {
	case <-r.anew: // it does
	default:
	}
	u := newUpstream(r)
	for _, req := range u.open() {
		if err := rpc.Send(req); err != nil {
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
	tidy := r.config.Clock.NewTimer(tidyEvery)
	defer tidy.Stop()
	for {
		requests, err := u.requests()
		if err != nil {
			return err
		}
		for _, req := range requests {
			if err := rpc.Send(req); err != nil {
				return err
			}
		}
		select {
		case resp := <-responses:
			u.take(resp)
		case <-r.cache.wake:
		case <-r.stepped:
		case <-r.anew:
			return errors.New("the proxy has stalled")
		case <-tidy.C():
			r.tidy()
			tidy.Reset(tidyEvery)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// upstream is what was said on one stream to Pilot: a state machine that does no I/O. An answer goes up when Envoy has
// given it, so that Pilot knows what proxies run with.
type upstream struct {
	*Relay
	unanswered map[string][]response      // of Pilot, by type
	behind     map[string]map[string]bool // by type, names of which Pilot knows that the proxy does not have them
	nodeKnown  bool
}

type response struct {
	nonce string
	names map[string]bool // true while this is Pilot's last word about the name: if the proxy refuses it, it refuses this
}

func newUpstream(r *Relay) *upstream {
	return &upstream{Relay: r, unanswered: map[string][]response{}, behind: map[string]map[string]bool{}}
}

// open returns the requests that begin the stream.
func (u *upstream) open() []*discovery.DeltaDiscoveryRequest {
	behind := map[string]lag{}
	for _, url := range u.cache.asked() {
		behind[url] = u.Relay.behind(url)
		u.note(url, slices.Collect(maps.Keys(behind[url].names)), true)
	}
	return u.named(u.cache.initial(behind))
}

// take keeps a response of Pilot and tells Envoy of it.
func (u *upstream) take(resp *discovery.DeltaDiscoveryResponse) {
	url := resp.GetTypeUrl()
	changed := u.cache.apply(resp)
	r := response{resp.GetNonce(), map[string]bool{}}
	for _, name := range changed {
		r.names[name] = true
		for _, earlier := range u.unanswered[url] {
			if earlier.names[name] {
				earlier.names[name] = false
			}
		}
	}
	u.unanswered[url] = append(u.unanswered[url], r)
	u.dirty(url, changed)
}

var errMistaken = errors.New("the proxy refuses what Pilot believes it has")

// requests returns what there is to say to Pilot: changes of subscriptions, and answers. It fails when Pilot believes what
// is not so, as when a proxy that has just started refuses what was taken for it: only a new stream can put that right.
func (u *upstream) requests() ([]*discovery.DeltaDiscoveryRequest, error) {
	out := u.cache.pending()
	for _, url := range u.cache.asked() {
		lag := u.Relay.behind(url)
		kept := u.unanswered[url][:0]
		for _, r := range u.unanswered[url] {
			answer := u.answer(url, r, lag)
			if answer == nil {
				kept = append(kept, r)
				continue
			}
			out = append(out, answer)
		}
		u.unanswered[url] = kept
		for name, reason := range lag.names {
			if reason != "" && !u.behind[url][name] && !slices.ContainsFunc(kept, func(r response) bool { _, ok := r.names[name]; return ok }) {
				return nil, fmt.Errorf("%w: %.120q of type %s", errMistaken, name, url)
			}
		}
	}
	return u.named(out), nil
}

// answer returns nil while the proxy has not answered.
func (u *upstream) answer(url string, r response, lag lag) *discovery.DeltaDiscoveryRequest {
	if lag.all {
		return nil
	}
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: r.nonce}
	var refused []string
	for name, last := range r.names {
		switch reason, behind := lag.names[name]; {
		case behind && reason == "":
			return nil
		case behind && last:
			refused = append(refused, name)
			req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: reason}
		}
	}
	u.note(url, slices.Collect(maps.Keys(r.names)), false)
	u.note(url, refused, true)
	if len(refused) > 0 {
		u.log.Warn("the proxy refused configuration", "type", url, "resources", deltaxds.Quoted(refused), "reason", req.GetErrorDetail().GetMessage())
	}
	return req
}

func (u *upstream) note(url string, names []string, behind bool) {
	if u.behind[url] == nil {
		u.behind[url] = map[string]bool{}
	}
	for _, name := range names {
		if behind {
			u.behind[url][name] = true
		} else {
			delete(u.behind[url], name)
		}
	}
}

// named adds to the first request of the stream who it is that asks.
func (u *upstream) named(requests []*discovery.DeltaDiscoveryRequest) []*discovery.DeltaDiscoveryRequest {
	if len(requests) > 0 && !u.nodeKnown {
		requests[0].Node, u.nodeKnown = u.lastNode(), true
	}
	return requests
}
