package svid

import (
	"context"
	"errors"
	"io"
	"log/slog"
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
	h.clock.SetTime(h.clock.Now().Add(13 * time.Hour))
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

func TestRetriesBackOffAndANudgeIsImmediate(t *testing.T) {
	h := newHarness(t, time.Hour)
	<-h.rotator.Ready()
	h.fail(errors.New("no"))
	h.rotator.Renew()
	eventually(t, "an attempt", func() bool { return h.count() == 2 })
	h.pass(10*time.Minute, time.Second)
	if n := h.count(); n < 30 || n > 200 {
		t.Fatalf("%d attempts in ten minutes; they should back off to one each ten seconds", n)
	}
	before := h.count()
	h.fail(nil)
	h.rotator.Nudge()
	eventually(t, "an attempt without any time passing", func() bool { return h.count() == before+1 })
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
