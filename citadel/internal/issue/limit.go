package issue

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"
)

// The limits are far above what a mesh needs: a node that starts again asks for a hundred or two, a rollout of one
// account for some thousand over all nodes. What is above them is a fault or an attack, of which one identity or node
// gets a twentieth of a core.
const (
	callsASecond   = 200
	identityBurst  = 2000
	nodeBurst      = 1000
	limitersOfKind = 1 << 14 // those used last are kept; one that was forgotten begins with a full burst
)

// limits bound the calls of one method, by identity and by node.
type limits struct {
	clock   clock.PassiveClock
	refused *prometheus.CounterVec

	mu         sync.Mutex
	identities *lru.Cache
	nodes      *lru.Cache
}

func newLimits(c clock.PassiveClock, refused *prometheus.CounterVec) *limits {
	return &limits{clock: c, refused: refused, identities: lru.New(limitersOfKind), nodes: lru.New(limitersOfKind)}
}

// take counts a call. Above a limit it returns ResourceExhausted, with the time after which there is room again
// (google.rpc.RetryInfo).
func (l *limits) take(identity, node string) error {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	of := reserve(l.identities, identity, callsASecond, identityBurst, now)
	if delay := of.DelayFrom(now); delay > 0 {
		of.CancelAt(now)
		return l.exceeded("identity", identity, delay)
	}
	at := reserve(l.nodes, node, callsASecond, nodeBurst, now)
	if delay := at.DelayFrom(now); delay > 0 {
		at.CancelAt(now)
		of.CancelAt(now)
		return l.exceeded("node", node, delay)
	}
	return nil
}

func reserve(of *lru.Cache, key string, perSecond rate.Limit, burst int, now time.Time) *rate.Reservation {
	limiter, ok := of.Get(key)
	if !ok {
		limiter = rate.NewLimiter(perSecond, burst)
		of.Add(key, limiter)
	}
	return limiter.(*rate.Limiter).ReserveN(now, 1)
}

func (l *limits) exceeded(kind, name string, delay time.Duration) error {
	l.refused.WithLabelValues(kind).Inc()
	return tooMany(fmt.Sprintf("too many requests of %s %s", kind, name), delay)
}

// A token that published keys do not decide costs the API server a review, and any stranger can make one up. Where keys are
// not published every token is such: an agent that starts again on a node with 250 pods has each of theirs reviewed, and its
// own again and again meanwhile.
const (
	reviewsASecond    = 20
	reviewBurst       = 600
	allReviewsASecond = 400
	allReviewsBurst   = 4000
)

// budget bounds the reviews that the API server is asked for, by the address that calls and in all.
type budget struct {
	mu        sync.Mutex
	addresses *lru.Cache
	all       *rate.Limiter
}

func newBudget() *budget {
	return &budget{addresses: lru.New(limitersOfKind), all: rate.NewLimiter(allReviewsASecond, allReviewsBurst)}
}

// take counts a review. Above a limit it returns ResourceExhausted, as limits.take does.
func (b *budget) take(address string, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := reserve(b.addresses, address, reviewsASecond, reviewBurst, now)
	if delay := of.DelayFrom(now); delay > 0 {
		of.CancelAt(now)
		return tooMany("too many tokens of "+address+" that only the API server can judge", delay)
	}
	all := b.all.ReserveN(now, 1)
	if delay := all.DelayFrom(now); delay > 0 {
		all.CancelAt(now)
		of.CancelAt(now)
		return tooMany("too many tokens that only the API server can judge", delay)
	}
	return nil
}

// tooMany is ResourceExhausted with the time after which it is worth trying again.
func tooMany(message string, delay time.Duration) error {
	st := status.New(codes.ResourceExhausted, message)
	if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}); err == nil {
		st = detailed
	}
	return st.Err()
}
