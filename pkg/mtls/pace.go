package mtls

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"k8s.io/utils/lru"
)

// A stream that is reset as soon as it is open counts for no bound on open streams, costs its sender nothing and a server
// some 5 µs (CVE-2023-44487). At the rate here that is a fiftieth of a core, and many times what any component asks of
// another.
const (
	streamsASecond = 4000
	streamsAtOnce  = 1000
	longestPause   = 5 * time.Second
	addressesKept  = 1 << 14 // those used last; one that was forgotten begins with a full burst
)

// pace bounds how fast the clients of one address open streams, whether they let them live or not. The zero value is not
// usable; see newPace.
type pace struct {
	mu        sync.Mutex
	addresses *lru.Cache
}

func newPace() *pace { return &pace{addresses: lru.New(addressesKept)} }

// tap waits until the address may open another stream. It runs in the goroutine that reads the connection, so that what
// else there is stays in the socket and TCP makes the sender wait: a refusal would be one more thing to do for the
// server. Who has so many connections that their turn is too far away is refused, after a while.
func (p *pace) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	delay, refused := p.take(addressOf(ctx), time.Now())
	if delay > 0 {
		time.Sleep(delay)
	}
	if refused {
		return ctx, status.Error(codes.ResourceExhausted, "too many streams are opened from this address")
	}
	return ctx, nil
}

func (p *pace) take(address string, now time.Time) (delay time.Duration, refused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limiter, ok := p.addresses.Get(address)
	if !ok {
		limiter = rate.NewLimiter(streamsASecond, streamsAtOnce)
		p.addresses.Add(address, limiter)
	}
	turn := limiter.(*rate.Limiter).ReserveN(now, 1)
	if delay = turn.DelayFrom(now); delay > longestPause {
		turn.CancelAt(now)
		return longestPause, true
	}
	return delay, false
}

// addressOf is the host that a connection comes from; all clients of a Unix socket are one.
func addressOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	return Host(p.Addr.String())
}
