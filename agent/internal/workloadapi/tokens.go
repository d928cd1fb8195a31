package workloadapi

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
)

// maxTokens is how many sets of audiences are remembered for a pod; one that asks for more asks Citadel more often.
const maxTokens = 64

// tokens are the JWT-SVIDs of one pod, in memory, by their audiences. Each is given out until half of its life.
type tokens struct {
	pod    *identity.Identity
	bundle jwtbundle.Source
	clock  clock.PassiveClock
	asking chan struct{} // capacity one: a pod has one request to Citadel in flight, and others wait for what it brings

	mu    sync.Mutex
	known map[string]token
}

type token struct {
	text         string
	half, expiry time.Time
}

func newTokens(p *identity.Identity, bundle jwtbundle.Source, c clock.PassiveClock) *tokens {
	return &tokens{pod: p, bundle: bundle, clock: c, asking: make(chan struct{}, 1), known: map[string]token{}}
}

// get returns a token for exactly these audiences. Its errors are gRPC statuses. While Citadel is away the last one is
// given out until its end.
func (t *tokens) get(ctx context.Context, audience []string) (string, error) {
	audience = slices.Clone(audience)
	slices.Sort(audience)
	audience = slices.Compact(audience)
	key := fmt.Sprintf("%q", audience)
	if known, ok := t.look(key); ok && t.clock.Now().Before(known.half) {
		return known.text, nil
	}
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	known, ok := t.look(key)
	if ok && t.clock.Now().Before(known.half) {
		return known.text, nil // another call has brought it
	}
	got, err := t.fetch(ctx, audience)
	if err == nil {
		t.keep(key, got)
		return got.text, nil
	}
	if ok && status.Code(err) == codes.Unavailable {
		return known.text, nil
	}
	return "", err
}

// fetch asks Citadel, and gives out nothing that a peer would refuse.
func (t *tokens) fetch(ctx context.Context, audience []string) (token, error) {
	text, err := t.pod.JWT(ctx, audience)
	if err != nil {
		code := status.Code(err)
		if code == codes.Unknown {
			code = codes.Unavailable // there is no token yet by which to ask
		}
		return token{}, status.Errorf(code, "no JWT-SVID: %v", err)
	}
	got, err := jwtsvid.ParseAndValidate(text, t.bundle, audience)
	if err != nil {
		return token{}, status.Errorf(codes.Unavailable, "Citadel's JWT-SVID does not verify: %v", err)
	}
	have := slices.Sorted(slices.Values(got.Audience))
	if got.ID.String() != t.pod.ID.String() || !slices.Equal(have, audience) {
		return token{}, status.Errorf(codes.Internal, "Citadel answered a JWT-SVID of %s for %q", got.ID, got.Audience)
	}
	now := t.clock.Now()
	return token{text: text, half: now.Add(got.Expiry.Sub(now) / 2), expiry: got.Expiry}, nil
}

// look returns a token that has not ended.
func (t *tokens) look(key string) (token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.known[key]
	return known, ok && t.clock.Now().Before(known.expiry)
}

// keep makes room by forgetting what has ended, or else what ends first.
func (t *tokens) keep(key string, got token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.known[key]; !ok && len(t.known) >= maxTokens {
		first := ""
		for k, v := range t.known {
			if first == "" || v.expiry.Before(t.known[first].expiry) {
				first = k
			}
		}
		delete(t.known, first)
	}
	t.known[key] = got
}
