package svid

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// client-go's workqueue and klog keep these for the life of a process
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// eventually fails the test if cond does not come true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within ten seconds: %s", what)
}

// harness runs a rotator whose fetches the test answers.
type harness struct {
	t       *testing.T
	ca      *svidtest.CA
	clock   *testclock.FakeClock
	rotator *Rotator

	mu      sync.Mutex
	life    time.Duration
	failure error
	fetched int
}

func newHarness(t *testing.T, life time.Duration) *harness {
	h := &harness{t: t, ca: svidtest.New(t, "cluster.local"), clock: testclock.NewFakeClock(time.Now()), life: life}
	h.rotator = NewRotator(func(context.Context) (*x509svid.SVID, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.fetched++
		if h.failure != nil {
			return nil, h.failure
		}
		return h.ca.SVID(h.ca.ID("ns", "sa"), h.clock.Now().Add(h.life)), nil
	}, h.clock, quiet, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.rotator.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

func (h *harness) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = err
}

func (h *harness) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fetched
}

// pass lets time pass in steps, each after the rotator has begun to wait.
func (h *harness) pass(d, step time.Duration) {
	h.t.Helper()
	for end := h.clock.Now().Add(d); h.clock.Now().Before(end); {
		eventually(h.t, "the rotator waits", h.clock.HasWaiters)
		h.clock.Step(min(step, end.Sub(h.clock.Now())))
	}
	eventually(h.t, "the rotator waits", h.clock.HasWaiters)
}

func TestRenewsAtHalfOfItsLife(t *testing.T) {
	h := newHarness(t, 24*time.Hour)
	<-h.rotator.Ready()
	h.pass(10*time.Hour, 10*time.Minute)
	if n := h.count(); n != 1 {
		t.Fatalf("%d fetches after 10 of 24 hours", n)
	}
	h.pass(4*time.Hour, 10*time.Minute)
	eventually(t, "renewal by 14 of 24 hours", func() bool { return h.count() == 2 })
}

func TestSuspendedMachineRenewsWithinAMinuteOfWaking(t *testing.T) {
	h := newHarness(t, 24*time.Hour)
	<-h.rotator.Ready()
	eventually(t, "the rotator waits", h.clock.HasWaiters)
	// The wall clock jumps. What waits is a timer of a minute, not one of half a day that would sleep on.
	h.clock.SetTime(h.clock.Now().Add(14 * time.Hour))
	eventually(t, "renewal", func() bool { return h.count() == 2 })
	if st := h.rotator.Status(); st.State != Valid {
		t.Fatalf("state %s", st.State)
	}
}

func TestServesTheOldOneWhileRenewalFails(t *testing.T) {
	h := newHarness(t, time.Hour)
	<-h.rotator.Ready()
	first, _ := h.rotator.GetX509SVID()
	broken := errors.New("Citadel is away")
	h.fail(broken)
	h.pass(35*time.Minute, time.Minute)
	eventually(t, "an attempt", func() bool { return h.count() > 1 })
	eventually(t, "state due", func() bool { return h.rotator.Status().State == Due })
	if st := h.rotator.Status(); !errors.Is(st.LastError, broken) {
		t.Fatalf("last error is %v", st.LastError)
	}
	if now, err := h.rotator.GetX509SVID(); err != nil || now != first {
		t.Fatalf("the SVID is gone: %v", err)
	}
	h.pass(30*time.Minute, time.Minute)
	if st := h.rotator.Status(); st.State != Expired {
		t.Fatalf("state %s after its end", st.State)
	}
	h.fail(nil)
	h.pass(time.Minute, 5*time.Second)
	eventually(t, "recovery", func() bool { return h.rotator.Status().State == Valid })
}

func TestRetriesBackOffAndANudgeBringsTheNextForward(t *testing.T) {
	h := newHarness(t, time.Hour)
	<-h.rotator.Ready()
	h.fail(errors.New("no"))
	h.rotator.Renew()
	eventually(t, "an attempt", func() bool { return h.count() == 2 })
	h.pass(10*time.Minute, time.Second)
	if n := h.count(); n < 15 || n > 60 {
		t.Fatalf("%d attempts in ten minutes; they should back off to two each minute", n)
	}
	before := h.count()
	h.fail(nil)
	h.rotator.Nudge(0)
	eventually(t, "an attempt without any time passing", func() bool { return h.count() == before+1 })
}

func TestNudgeIsSpread(t *testing.T) {
	now := time.Now()
	c := testclock.NewFakeClock(now)
	early := 0
	for range 1000 {
		r := NewRotator(nil, c, quiet, nil)
		r.failures, r.retryAt = 1, now.Add(time.Hour)
		r.Nudge(10 * time.Second)
		at := r.Status().NextRenewal
		if at.Before(now.Round(0)) || at.After(now.Add(10*time.Second)) {
			t.Fatalf("next attempt in %s", at.Sub(now))
		}
		if at.Before(now.Add(time.Second)) {
			early++
		}
	}
	if early > 200 {
		t.Fatalf("%d of 1000 within the first of ten seconds", early)
	}
}

// TestReturnAfterAnOutageIsNoStampede plays the schedule of ten thousand rotators that are all due while Citadel is away.
func TestReturnAfterAnOutageIsNoStampede(t *testing.T) {
	const rotators = 10_000
	for _, outage := range []time.Duration{5 * time.Minute, time.Hour} {
		for name, due := range map[string]func() time.Duration{
			"due one by one":       func() time.Duration { return someTime(outage) },
			"due at the same time": func() time.Duration { return 0 },
		} {
			perSecond, last := map[int]int{}, time.Duration(0)
			for range rotators {
				schedule := retries(firstRetry, longestRetry)
				at := due()
				for at < outage {
					at += schedule.NextBackOff()
				}
				perSecond[int((at-outage)/time.Second)]++
				last = max(last, at-outage)
			}
			most := 0
			for _, n := range perSecond {
				most = max(most, n)
			}
			t.Logf("outage of %s, %s: at most %d of %d in a second, the last after %s", outage, name, most, rotators, last.Round(time.Millisecond))
			if most > rotators/10 || last > 2*longestRetry {
				t.Errorf("outage of %s, %s: %d in one second, the last after %s", outage, name, most, last)
			}
		}
	}
}

func TestLateFromHalfOfWhatWasLeft(t *testing.T) {
	h := newHarness(t, 10*time.Hour)
	<-h.rotator.Ready()
	h.fail(errors.New("Citadel is away"))
	start := h.clock.Now()
	var states []State
	for h.clock.Now().Sub(start) < 11*time.Hour {
		h.pass(10*time.Minute, time.Minute)
		st := h.rotator.Status()
		if len(states) == 0 || states[len(states)-1] != st.State {
			states = append(states, st.State)
			if d := st.Since.Sub(start); st.State == Late && (d < 7*time.Hour || d > 8*time.Hour) {
				t.Errorf("late since %s of ten hours", d)
			}
		}
		if st.State != Valid && (st.Failures == 0 || st.LastError == nil || !st.NextRenewal.After(h.clock.Now())) {
			t.Fatalf("%+v", st)
		}
	}
	if want := []State{Valid, Due, Late, Expired}; !slices.Equal(states, want) {
		t.Fatalf("states %v", states)
	}
}

func TestSignerThatChangesHasEveryoneRenewOverTheTimeGiven(t *testing.T) {
	old, next := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	now := time.Now()
	c := testclock.NewFakeClock(now)
	b, _ := newBundle(t)
	if err := b.hear(old.Document(1), old.Cert.SubjectKeyId, time.Hour, true); err != nil {
		t.Fatal(err)
	}
	var all []*Rotator
	for range 200 {
		r := NewRotator(nil, c, quiet, nil)
		r.Follow(b)
		r.heedSigner()
		r.succeeded(old.SVID(old.ID("ns", "sa"), now.Add(24*time.Hour)))
		if d := r.Status().NextRenewal.Sub(now); d < 10*time.Hour {
			t.Fatalf("due in %s by the signer that signed it", d)
		}
		all = append(all, r)
	}
	if err := b.hear(old.Document(2, next.Cert), next.Cert.SubjectKeyId, time.Hour, false); err != nil {
		t.Fatal(err)
	}
	quarters := map[int]int{}
	for _, r := range all {
		r.heedSigner()
		r.heedSigner() // the second time draws no other lot
		quarters[int(r.Status().NextRenewal.Sub(now)/(15*time.Minute))]++
	}
	if len(quarters) != 4 || quarters[0] > 100 {
		t.Fatalf("renewals by quarter of the hour: %v", quarters)
	}
	// A replica that has not heard of the change signs with the old key: again, and never in a hot loop.
	r := all[0]
	var waits []time.Duration
	for range 12 {
		r.succeeded(old.SVID(old.ID("ns", "sa"), now.Add(24*time.Hour)))
		waits = append(waits, r.Status().NextRenewal.Sub(now))
	}
	if waits[0] < 5*time.Second || waits[0] > 15*time.Second || waits[11] < 5*time.Minute || waits[11] > 15*time.Minute {
		t.Fatalf("waits %v", waits)
	}
	r.succeeded(next.SVID(next.ID("ns", "sa"), now.Add(24*time.Hour)))
	if d := r.Status().NextRenewal.Sub(now); d < 10*time.Hour {
		t.Fatalf("due in %s by the new signer", d)
	}
}

func TestNothingIsAskedForBeforeThereIsABundle(t *testing.T) {
	signer := svidtest.New(t, "cluster.local")
	b, _ := newBundle(t)
	asked := make(chan struct{}, 1)
	r := NewRotator(func(context.Context) (*x509svid.SVID, error) {
		if _, _, err := b.Current(); err != nil {
			t.Errorf("asked with %v", err)
		}
		asked <- struct{}{}
		return signer.SVID(signer.ID("ns", "sa"), time.Now().Add(time.Hour)), nil
	}, testclock.NewFakeClock(time.Now()), quiet, nil)
	r.Follow(b)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, "the reason is told", func() bool { return errors.Is(r.Status().LastError, ErrNoBundle) })
	if err := b.hear(signer.Document(1), signer.Cert.SubjectKeyId, time.Hour, true); err != nil {
		t.Fatal(err)
	}
	<-asked
	eventually(t, "there is an SVID", func() bool { return r.Status().State == Valid && r.Status().LastError == nil })
}

func TestPendingUntilTheFirst(t *testing.T) {
	r := NewRotator(nil, testclock.NewFakeClock(time.Now()), quiet, nil)
	if _, err := r.GetX509SVID(); !errors.Is(err, ErrPending) {
		t.Fatalf("error is %v", err)
	}
	if st := r.Status(); st.State != Pending {
		t.Fatalf("state %s", st.State)
	}
}

func TestDueIsJitteredAroundHalf(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ random, fraction float64 }{{0, 0.45}, {0.5, 0.5}, {1, 0.55}} {
		got := dueAt(now, now.Add(1000*time.Second), c.random).Sub(now)
		if want := time.Duration(c.fraction * 1000 * float64(time.Second)); got.Round(time.Millisecond) != want {
			t.Errorf("random %v: due after %s, want %s", c.random, got, want)
		}
	}
}
