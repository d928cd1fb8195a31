package svid

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	firstRetry = 100 * time.Millisecond
	// leastRenewal is the shortest time between two successes.
	leastRenewal = time.Second
	// longestRetry is a compromise: after a long outage everyone has an SVID within 45 seconds of Citadel's return (the
	// jitter adds a half), of the hours that the SVIDs have left; and in no second does more than a twentieth or so of
	// the mesh ask, however many waited.
	longestRetry = 30 * time.Second
	// Citadel's replicas may differ in who signs for a while. An SVID of the old signer, got after the change, is renewed
	// again by this schedule.
	firstMismatch, longestMismatch = 10 * time.Second, 10 * time.Minute
)

// retries returns the waits between failed attempts. Each is spread by a half to either side, so that those who failed
// together do not come back together.
func retries(first, longest time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, longest, 2, 0.5
	b.Reset()
	return b
}

// dueAt is half of the life that remains at the time of receipt, ±10 % by the random number in [0,1). The certificate's
// own notBefore is not used: it is dated back for skewed clocks, which a short life would not survive.
func dueAt(received, notAfter time.Time, random float64) time.Time {
	life := notAfter.Sub(received)
	return received.Add(time.Duration(float64(life) * (0.45 + 0.1*random)))
}

// lateAt is when a renewal that was due has failed for so long that people should know: half of what was left then.
func lateAt(due, notAfter time.Time) time.Time { return due.Add(notAfter.Sub(due) / 2) }

// someTime returns a random part of d.
func someTime(d time.Duration) time.Duration { return time.Duration(rand.Float64() * float64(d)) }
