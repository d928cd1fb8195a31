package outage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type recorder struct{ events []string }

func (r *recorder) Eventf(regarding, _ runtime.Object, kind, reason, action, note string, args ...any) {
	on := ""
	switch o := regarding.(type) {
	case *corev1.Node:
		on = "node " + o.Name
	case *corev1.Pod:
		on = "pod " + o.Namespace + "/" + o.Name
	}
	r.events = append(r.events, fmt.Sprintf("%s %s %s %s: %s", kind, reason, action, on, fmt.Sprintf(note, args...)))
}

func (r *recorder) take() []string {
	out := r.events
	r.events = nil
	return out
}

// newPod returns a pod whose requests fail while Citadel is away.
func newPod(t *testing.T, ca *svidtest.CA, c *testclock.FakeClock, name string, away, refusing *atomic.Bool) *identity.Identity {
	t.Helper()
	r := svid.NewRotator(func(context.Context) (*x509svid.SVID, error) {
		if refusing.Load() {
			return nil, fmt.Errorf("asking Citadel: %w", status.Error(codes.PermissionDenied, "revoked"))
		}
		if away.Load() {
			return nil, errors.New("Citadel is away: " + strings.Repeat("x", 2000))
		}
		return ca.SVID(ca.ID("finance", "payroll"), c.Now().Add(10*time.Hour)), nil
	}, c, identitytest.Quiet, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	<-r.Ready()
	return &identity.Identity{Rotator: r, Facts: identity.Facts{Namespace: "finance", Pod: name, UID: name}, ID: ca.ID("finance", "payroll")}
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within twenty seconds: %s", what)
}

func TestOutageAndReturnAreEvents(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	c := testclock.NewFakeClock(time.Now())
	var away, refusing atomic.Bool
	var pods []*identity.Identity
	for i := range 30 {
		pods = append(pods, newPod(t, ca, c, fmt.Sprintf("p%02d", i), &away, &refusing))
	}
	r := &recorder{}
	w := &Watch{Node: "node1", Pods: func() []*identity.Identity { return append([]*identity.Identity(nil), pods...) }, Recorder: r, Clock: c}
	states := func(want svid.State) func() bool {
		return func() bool {
			for _, p := range pods {
				if st := p.Status(); st.State != want || (want != svid.Valid && st.Failures == 0) {
					return false
				}
			}
			return true
		}
	}
	w.look()
	away.Store(true)
	c.Step(6 * time.Hour) // past half of ten hours
	until(t, "all are due", states(svid.Due))
	w.look()
	if got := r.take(); len(got) > 0 {
		t.Fatalf("an outage that is no trouble yet: %q", got)
	}
	c.Step(2 * time.Hour) // past half of what was left
	until(t, "all are late", states(svid.Late))
	w.look()
	got := r.take()
	if len(got) != 21 || !strings.HasPrefix(got[0], "Warning IdentityRenewalFailing RenewIdentityUnknown pod finance/p00: ") ||
		!strings.HasPrefix(got[20], "Warning IdentityRenewalFailing RenewIdentityUnknown node node1: certificates of pods are not renewed (meshctl identity list shows which), such as that of finance/p00, which ends at ") {
		t.Fatalf("%d events, the first %.100q, the last %.200q", len(got), got[0], got[len(got)-1])
	}
	for _, e := range got {
		if len(e) > 1100 {
			t.Errorf("an event of %d bytes, which the API server refuses", len(e))
		}
	}
	w.look()
	if got := r.take(); len(got) != 1 || !strings.Contains(got[0], "node1") {
		t.Fatalf("still failing: %d events, where the node's count should rise", len(got))
	}
	refusing.Store(true)
	until(t, "all are refused", func() bool {
		c.Step(10 * time.Second)
		return status.Code(pods[0].Status().LastError) == codes.PermissionDenied
	})
	w.look()
	if got := r.take(); len(got) != 1 || !strings.HasPrefix(got[0], "Warning IdentityRenewalFailing RenewIdentityPermissionDenied node node1: ") {
		t.Fatalf("failing in another way: %.200q", got)
	}
	refusing.Store(false)
	away.Store(false)
	until(t, "all are renewed", func() bool {
		if states(svid.Valid)() {
			return true
		}
		c.Step(10 * time.Second) // until each of them has come to its next attempt
		return false
	})
	w.look()
	if got = r.take(); len(got) != 21 || !strings.HasPrefix(got[0], "Normal IdentityRenewed RenewIdentity pod finance/p00") || !strings.HasPrefix(got[20], "Normal IdentityRenewed RenewIdentity node node1") {
		t.Fatalf("%q", got)
	}
	w.look()
	if got := r.take(); len(got) > 0 {
		t.Fatalf("all is well, and yet %q", got)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := testclock.NewFakeClock(time.Now())
	looked := make(chan struct{}, 10)
	w := &Watch{Pods: func() []*identity.Identity { looked <- struct{}{}; return nil }, Recorder: &recorder{}, Clock: c}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	until(t, "waiting", c.HasWaiters)
	c.Step(Every)
	<-looked
	cancel()
	<-done
}
