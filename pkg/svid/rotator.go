package svid

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/utils/clock"
)

// recheck is how often a rotator looks at the wall clock: a timer runs on the monotonic clock, which stands still while
// a machine is suspended.
const recheck = time.Minute

// State says where a rotator is.
type State string

const (
	Pending State = "pending" // no SVID yet
	Valid   State = "valid"   // the SVID is valid and not due
	Due     State = "due"     // the SVID is valid, and its renewal has failed so far
	Expired State = "expired" // renewal failed until the SVID's end
)

// Status is what operators see of a rotator.
type Status struct {
	State     State
	SVID      *x509svid.SVID // nil while pending
	LastError error          // why the last attempt failed; nil after a success
}

// Rotator obtains an SVID and renews it at a jittered half of its life. It keeps serving the one it has until that ends,
// however long renewal fails.
type Rotator struct {
	fetch  func(context.Context) (*x509svid.SVID, error)
	clock  clock.Clock
	log    *slog.Logger
	notify func(*x509svid.SVID)
	nudge  chan struct{}
	ready  chan struct{} // closed when the first SVID is there

	mu      sync.RWMutex
	current *x509svid.SVID
	due     time.Time
	lastErr error
}

// NewRotator returns a rotator that obtains SVIDs by fetch. Notify, if not nil, is called with each new SVID, after it
// has become the current one and never concurrently.
func NewRotator(fetch func(context.Context) (*x509svid.SVID, error), c clock.Clock, log *slog.Logger, notify func(*x509svid.SVID)) *Rotator {
	return &Rotator{fetch: fetch, clock: c, log: log, notify: notify, nudge: make(chan struct{}, 1), ready: make(chan struct{})}
}

// Run obtains and renews until ctx ends. It is called once.
func (r *Rotator) Run(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier, retry.RandomizationFactor = 100*time.Millisecond, 10*time.Second, 2, 0.5
	for {
		var wait time.Duration
		if until := r.untilDue(); until > 0 {
			wait = min(until, recheck)
		} else if err := r.attempt(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = retry.NextBackOff()
			r.log.Warn("no new SVID", "error", err, "retryIn", wait.String())
		} else {
			retry.Reset()
			continue
		}
		timer := r.clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-r.nudge:
			timer.Stop()
			retry.Reset()
		case <-timer.C():
		}
	}
}

// Nudge makes the rotator try at once if it is waiting to retry, for when what failed it may have changed.
func (r *Rotator) Nudge() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// Renew makes the current SVID due now.
func (r *Rotator) Renew() {
	r.mu.Lock()
	r.due = time.Time{}
	r.mu.Unlock()
	r.Nudge()
}

// Ready is closed once there is an SVID.
func (r *Rotator) Ready() <-chan struct{} { return r.ready }

// ErrPending is why there is no SVID yet.
var ErrPending = errors.New("no SVID has been obtained yet")

// GetX509SVID returns the current SVID; it implements x509svid.Source.
func (r *Rotator) GetX509SVID() (*x509svid.SVID, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.current == nil {
		return nil, ErrPending
	}
	return r.current, nil
}

// Status returns the rotator's state.
func (r *Rotator) Status() Status {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := Status{State: Valid, SVID: r.current, LastError: r.lastErr}
	switch now := r.clock.Now(); {
	case r.current == nil:
		s.State = Pending
	case !now.Before(r.current.Certificates[0].NotAfter):
		s.State = Expired
	case !now.Before(r.due):
		s.State = Due
	}
	return s
}

func (r *Rotator) untilDue() time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.current == nil {
		return 0
	}
	return r.due.Sub(r.clock.Now())
}

func (r *Rotator) attempt(ctx context.Context) error {
	next, err := r.fetch(ctx)
	r.mu.Lock()
	r.lastErr = err
	if err != nil {
		r.mu.Unlock()
		return err
	}
	first := r.current == nil
	r.current = next
	// Round drops the monotonic reading: due must be compared by the wall clock.
	now := r.clock.Now().Round(0)
	r.due = dueAt(now, next.Certificates[0].NotAfter, rand.Float64())
	leaf := next.Certificates[0]
	r.log.Info("new SVID", "identity", next.ID.String(), "serial", leaf.SerialNumber.Text(16), "notAfter", leaf.NotAfter, "renewAt", r.due)
	r.mu.Unlock()
	if r.notify != nil {
		r.notify(next)
	}
	if first {
		close(r.ready)
	}
	return nil
}

// dueAt is half of the life that remains at the time of receipt, ±10 % by the random number in [0,1). The certificate's
// own notBefore is not used: it is dated back for skewed clocks, which a short life would not survive.
func dueAt(received, notAfter time.Time, random float64) time.Time {
	life := notAfter.Sub(received)
	return received.Add(time.Duration(float64(life) * (0.45 + 0.1*random)))
}
