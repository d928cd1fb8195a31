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
	of := reserve(l.identities, identity, identityBurst, now)
	if delay := of.DelayFrom(now); delay > 0 {
		of.CancelAt(now)
		return l.exceeded("identity", identity, delay)
	}
	at := reserve(l.nodes, node, nodeBurst, now)
	if delay := at.DelayFrom(now); delay > 0 {
		at.CancelAt(now)
		of.CancelAt(now)
		return l.exceeded("node", node, delay)
	}
	return nil
}

func reserve(of *lru.Cache, key string, burst int, now time.Time) *rate.Reservation {
	limiter, ok := of.Get(key)
	if !ok {
		limiter = rate.NewLimiter(callsASecond, burst)
		of.Add(key, limiter)
	}
	return limiter.(*rate.Limiter).ReserveN(now, 1)
}

func (l *limits) exceeded(kind, name string, delay time.Duration) error {
	l.refused.WithLabelValues(kind).Inc()
	return tooMany(fmt.Sprintf("too many requests of %s %s", kind, name), delay)
}

// tooMany is ResourceExhausted with the time after which it is worth trying again.
func tooMany(message string, delay time.Duration) error {
	st := status.New(codes.ResourceExhausted, message)
	if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}); err == nil {
		st = detailed
	}
	return st.Err()
}
