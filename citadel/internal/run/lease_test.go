package run

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// replica competes for the Lease through a client of its own that can be cut off.
type replica struct {
	leading atomic.Bool
	cut     atomic.Bool
	stop    func()
}

func start(t *testing.T, shared *fake.Clientset, working *atomic.Int32) *replica {
	t.Helper()
	r := &replica{}
	own := fake.NewClientset()
	own.PrependReactor("*", "leases", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if r.cut.Load() {
			return true, nil, errors.New("cut off")
		}
		obj, err := shared.Invokes(a, nil)
		return true, obj, err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := lead(ctx, own, quiet, &r.leading, func(ctx context.Context) {
			if working.Add(1) > 1 {
				t.Error("two replicas reconcile at once")
			}
			<-ctx.Done()
			working.Add(-1)
		}); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(r.stop)
	return r
}

func within(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s", d, what)
}

func TestAnotherReplicaTakesOverWithinFiveSeconds(t *testing.T) {
	shared := fake.NewClientset()
	var working atomic.Int32
	first := start(t, shared, &working)
	within(t, 2*time.Second, "the first leads", first.leading.Load)
	second := start(t, shared, &working)

	first.cut.Store(true) // as if it were dead, or its network were
	within(t, 5*time.Second, "the second leads", second.leading.Load)
	if first.leading.Load() {
		t.Fatal("the first still leads")
	}
	first.cut.Store(false)
	second.stop() // in order: it gives the Lease up
	within(t, 2*time.Second, "the first leads again", first.leading.Load)
}

func TestSettingsAreChecked(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Settings){
		"trust domain in capitals":  func(s *Settings) { s.TrustDomain = "Cluster.Local" },
		"lifetime of a second":      func(s *Settings) { s.WorkloadTTL = time.Second },
		"most below the default":    func(s *Settings) { s.MaxWorkloadTTL = time.Hour },
		"root shorter than a leaf":  func(s *Settings) { s.RootTTL = time.Hour },
		"renewal after the end":     func(s *Settings) { s.RotationFraction = 1 },
		"no requests":               func(s *Settings) { s.KubeQPS = 0 },
		"a DNS name that is none":   func(s *Settings) { s.DNSNames = map[string]string{"bulwark-pilot": "a b"} },
		"a DNS name with asterisks": func(s *Settings) { s.DNSNames = map[string]string{"bulwark-pilot": "*.svc"} },
	} {
		s := Defaults()
		spoil(&s)
		if s.Validate() == nil {
			t.Errorf("%s: passed", name)
		}
	}
}
