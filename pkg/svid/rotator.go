package svid

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	Late    State = "late"    // the same, for half of the life that was left when it became due
	Expired State = "expired" // renewal failed until the SVID's end
)

// Status is what operators see of a rotator. The key is not in it.
type Status struct {
	State        State
	Since        time.Time           // when it came to be so
	Certificates []*x509.Certificate // leaf first; nil while pending
	NextRenewal  time.Time           // when Citadel is asked next
	Failures     int                 // attempts that have failed since the last success
	LastError    error               // why the last attempt failed; nil after a success
}

// Rotator obtains an SVID and renews it at a jittered half of its life, or when another key has come to sign. It keeps
// serving the one it has until that ends, however long renewal fails.
type Rotator struct {
	fetch  func(context.Context) (*x509svid.SVID, error)
	clock  clock.Clock
	log    *slog.Logger
	notify func(*x509svid.SVID)
	bundle *Bundle // says who signs; may be nil
	wake   chan struct{}
	ready  chan struct{} // closed when the first SVID is there

	mu       sync.RWMutex
	current  *x509svid.SVID
	since    time.Time // of the current SVID; before there is one, of the rotator
	due      time.Time
	retryAt  time.Time // not before this, after a failure
	failures int
	lastErr  error
	said     string // of the last failure in the log
	retry    *backoff.ExponentialBackOff
	mismatch *backoff.ExponentialBackOff
	signer   []byte // as last heard
}

// NewRotator returns a rotator that obtains SVIDs by fetch. Notify, if not nil, is called with each new SVID, after it
// has become the current one and never concurrently.
func NewRotator(fetch func(context.Context) (*x509svid.SVID, error), c clock.Clock, log *slog.Logger, notify func(*x509svid.SVID)) *Rotator {
	return &Rotator{
		fetch: fetch, clock: c, log: log, notify: notify, wake: make(chan struct{}, 1), ready: make(chan struct{}), since: c.Now().Round(0),
		retry: retries(firstRetry, longestRetry), mismatch: retries(firstMismatch, longestMismatch),
	}
}

// Follow has the SVID renewed when the bundle says that another key signs. It is called before Run.
func (r *Rotator) Follow(b *Bundle) { r.bundle = b }

// Run obtains and renews until ctx ends. It is called once.
func (r *Rotator) Run(ctx context.Context) {
	if !r.trusts(ctx) {
		return
	}
	for {
		changed := r.heedSigner()
		wait := r.untilNext()
		if wait <= 0 {
			r.attempt(ctx)
			if ctx.Err() != nil {
				return
			}
			continue
		}
		timer := r.clock.NewTimer(min(wait, recheck))
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-changed:
		case <-timer.C():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// trusts waits for a bundle to verify Citadel by, so that a program that has just started does not fail before it can
// succeed. It is false if ctx ends before.
func (r *Rotator) trusts(ctx context.Context) bool {
	if r.bundle == nil {
		return true
	}
	if _, _, err := r.bundle.Current(); err != nil {
		r.mu.Lock()
		r.lastErr = err
		r.mu.Unlock()
	}
	return r.bundle.WaitReady(ctx) == nil
}

// Nudge brings the next attempt after a failure forward to a random moment within the time given, for when what failed
// it may have changed. Only what cannot happen to a whole mesh at once may give no time at all.
func (r *Rotator) Nudge(within time.Duration) {
	r.mu.Lock()
	if at := r.now().Add(someTime(within)); at.Before(r.retryAt) {
		r.retryAt = at
	}
	r.retry.Reset()
	r.mu.Unlock()
	r.awake()
}

// Renew makes the current SVID due now.
func (r *Rotator) Renew() {
	r.mu.Lock()
	r.due, r.retryAt = r.now(), time.Time{}
	r.mu.Unlock()
	r.awake()
}

func (r *Rotator) awake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// now has no monotonic reading: it is compared with the times of certificates.
func (r *Rotator) now() time.Time { return r.clock.Now().Round(0) }

// heedSigner makes the SVID due, at a random moment of the time that Citadel gives, if its signer is not the one that
// signs now. It returns the channel that tells of the next change.
func (r *Rotator) heedSigner() <-chan struct{} {
	if r.bundle == nil {
		return nil
	}
	trust, changed, err := r.bundle.Current()
	if err != nil || len(trust.Signer) == 0 {
		return changed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes.Equal(r.signer, trust.Signer) {
		return changed
	}
	r.signer = trust.Signer
	r.mismatch.Reset()
	if r.current != nil && !r.fits(r.current) {
		r.hasten(someTime(trust.RenewWithin))
	}
	return changed
}

// fits and hasten are called with mu held.
func (r *Rotator) fits(s *x509svid.SVID) bool {
	return len(r.signer) == 0 || bytes.Equal(s.Certificates[0].AuthorityKeyId, r.signer)
}

func (r *Rotator) hasten(wait time.Duration) {
	if at := r.now().Add(wait); at.Before(r.due) {
		r.due = at
	}
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
	s := Status{NextRenewal: r.next(), Failures: r.failures, LastError: r.lastErr}
	s.State, s.Since = r.state(r.now())
	if r.current != nil {
		s.Certificates = r.current.Certificates
	}
	return s
}

// state and next are called with mu held.
func (r *Rotator) state(now time.Time) (State, time.Time) {
	if r.current == nil {
		return Pending, r.since
	}
	notAfter := r.current.Certificates[0].NotAfter
	late := lateAt(r.due, notAfter)
	switch {
	case !now.Before(notAfter):
		return Expired, notAfter
	case !now.Before(late):
		return Late, late
	case !now.Before(r.due):
		return Due, r.due
	}
	return Valid, r.since
}

func (r *Rotator) next() time.Time {
	if r.retryAt.After(r.due) {
		return r.retryAt
	}
	return r.due
}

func (r *Rotator) untilNext() time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.next().Sub(r.now())
}

func (r *Rotator) attempt(ctx context.Context) {
	next, err := r.fetch(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.failed(err)
		return
	}
	first := r.succeeded(next)
	if r.notify != nil {
		r.notify(next)
	}
	if first {
		close(r.ready)
	}
}

func (r *Rotator) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	wait := r.retry.NextBackOff()
	r.failures++
	r.lastErr, r.retryAt = err, now.Add(wait)
	// An outage has one cause and a thousand failures. It is said again when it has become another, or graver.
	state, since := r.state(now)
	level, saying := slog.LevelDebug, string(state)+codeOf(err)
	if saying != r.said {
		level, r.said = slog.LevelWarn, saying
	}
	r.log.Log(context.Background(), level, "no new SVID", "state", state, "since", since, "failures", r.failures, "error", err, "retryIn", wait.String())
}

func (r *Rotator) succeeded(next *x509svid.SVID) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, leaf := r.now(), next.Certificates[0]
	failures := r.failures
	first = r.current == nil
	r.current, r.since, r.due = next, now, dueAt(now, leaf.NotAfter, rand.Float64())
	if soonest := now.Add(leastRenewal); r.due.Before(soonest) { // an SVID that is about to end must not make a hot loop
		r.due = soonest
	}
	r.failures, r.lastErr, r.retryAt, r.said = 0, nil, time.Time{}, ""
	r.retry.Reset()
	if r.fits(next) {
		r.mismatch.Reset()
	} else {
		r.hasten(r.mismatch.NextBackOff())
	}
	r.log.Info("new SVID", "identity", next.ID.String(), "serial", leaf.SerialNumber.Text(16), "notAfter", leaf.NotAfter, "renewAt", r.due, "afterFailures", failures)
	return first
}

// codeOf tells causes apart without their wording, which may change with each attempt.
func codeOf(err error) string {
	if c := status.Code(err); c != codes.Unknown {
		return c.String()
	}
	return err.Error()
}
