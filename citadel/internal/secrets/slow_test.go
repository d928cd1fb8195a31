package secrets

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/events"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// slowAPI is an API server whose answers to writes of Secrets wait for the test.
type slowAPI struct {
	kubernetes.Interface
	writes  chan write
	working atomic.Int32
}

// write is one that waits for its answer.
type write struct {
	secret string
	answer chan struct{}
}

type slowCore struct {
	corev1client.CoreV1Interface
	api *slowAPI
}

type slowSecrets struct {
	corev1client.SecretInterface
	api *slowAPI
}

// IsWatchListSemanticsUnSupported has informers list first: a watch of the fake holds a hundred objects.
func (a *slowAPI) IsWatchListSemanticsUnSupported() bool { return true }

func (a *slowAPI) CoreV1() corev1client.CoreV1Interface { return slowCore{a.Interface.CoreV1(), a} }

func (c slowCore) Secrets(namespace string) corev1client.SecretInterface {
	return slowSecrets{c.CoreV1Interface.Secrets(namespace), c.api}
}

func (s slowSecrets) Update(ctx context.Context, secret *corev1.Secret, o metav1.UpdateOptions) (*corev1.Secret, error) {
	s.api.working.Add(1)
	defer s.api.working.Add(-1)
	w := write{secret.Name, make(chan struct{})}
	s.api.writes <- w
	select {
	case <-w.answer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.SecretInterface.Update(ctx, secret, o)
}

// Citadel starts after a long absence: 300 Secrets are due, and the API server takes a write each 40 seconds, which is more
// than three hours for all. Some certificates end within an hour or two: nobody's does unrenewed.
func TestRenewalsUnderASlowAPIServerAreByTheirEnd(t *testing.T) {
	const n, each = 300, 40 * time.Second
	clock := testclock.NewFakeClock(time.Now())
	state := newState(t, clock)
	objects := []runtime.Object{namespace("finance", nil)}
	end, place := map[string]time.Time{}, map[string]int{} // of a Secret: its certificate's end, and what number it is by that
	for i, nth := range rand.New(rand.NewPCG(7, 7)).Perm(n) {
		sa := account("finance", fmt.Sprint("a", i), fmt.Sprint("n", i))
		config := dayLong
		config.TTL = 10*time.Hour + 30*time.Minute + time.Duration(nth)*time.Minute
		secret := mustBuild(t, sa, state, config)
		secret.ResourceVersion = "1"
		objects = append(objects, sa, secret)
		end[secret.Name], place[secret.Name] = clock.Now().Add(config.TTL).Truncate(time.Second), nth
	}
	clock.Step(9*time.Hour + 30*time.Minute)
	api := &slowAPI{Interface: fake.NewClientset(objects...), writes: make(chan write, n)}
	ctl := New(api, ca.NewKeeper(state), dayLong, clock, &events.FakeRecorder{}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	w := &world{t: t, clock: clock, ctl: ctl}
	w.start()
	defer func() { w.stop() }()

	var waiting []write
	began := 0
	for answered := range n {
		for len(waiting) < min(Workers, n-answered) {
			select {
			case next := <-api.writes:
				if at := place[next.secret]; at > began+2*Workers { // those that run beside each other may change places
					t.Errorf("write %d is of the Secret that ends as number %d", began, at)
				}
				began++
				waiting = append(waiting, next)
			case <-time.After(15 * time.Second):
				t.Fatalf("after %d answers %d writes are under way: %+v", answered, len(waiting), ctl.Progress())
			}
		}
		if most := api.working.Load(); most > Workers {
			t.Fatalf("%d writes at once", most)
		}
		clock.Step(each)
		first := waiting[0]
		if left := end[first.secret].Sub(clock.Now()); left <= 0 {
			t.Errorf("%s is renewed %s after its end", first.secret, -left)
		}
		waiting = waiting[1:]
		close(first.answer)
	}
	eventually(t, "all are renewed", func() bool { p := ctl.Progress(); return p.Ready == n && p.Due == 0 && !p.Syncing })
	if began != n || len(api.writes) != 0 {
		t.Errorf("%d writes of %d Secrets", began+len(api.writes), n)
	}
	secret, err := api.CoreV1().Secrets("finance").Get(t.Context(), mesh.SecretPrefix+"a0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pair, reason := readPair(secret); reason != "" || !pair.Leaf.NotAfter.After(end[secret.Name]) {
		t.Errorf("a renewed Secret: %s %v", reason, pair.Leaf)
	}
}
