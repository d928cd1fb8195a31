package revoke

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const payroll = "spiffe://cluster.local/ns/finance/sa/payroll"

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func of(name string, end time.Time) revocation.Revocation {
	return revocation.Revocation{Name: name, Identity: payroll, Reason: "stolen", Created: start, Expires: end}
}

type fixture struct {
	*Store
	client *fake.Clientset
	clock  *testclock.FakePassiveClock
	reg    *prometheus.Registry
}

// newStore returns a store that is not running.
func newStore(t *testing.T, objects ...runtime.Object) fixture {
	t.Helper()
	f := fixture{client: fake.NewClientset(objects...), clock: testclock.NewFakePassiveClock(start), reg: prometheus.NewRegistry()}
	f.Store = New(f.client, f.clock, f.reg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	return f
}

func (f fixture) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (f fixture) denied() bool {
	_, denied := f.Denies(payroll, "", "")
	return denied
}

func configMap(data string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: mesh.Namespace, Name: mesh.RevocationsConfig}, Data: map[string]string{revocation.ConfigKey: data}}
}

func (f fixture) store(t *testing.T, data string) {
	t.Helper()
	if _, err := f.client.CoreV1().ConfigMaps(mesh.Namespace).Update(context.Background(), configMap(data), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func encoded(t *testing.T, list ...revocation.Revocation) string {
	t.Helper()
	data, err := revocation.List(list).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data[revocation.ConfigKey]
}

func TestNothingIsReadyBeforeTheListWasRead(t *testing.T) {
	f := newStore(t)
	if f.Ready() == nil {
		t.Fatal("ready before anything was read")
	}
	f.run(t)
	eventually(t, "ready without a ConfigMap", func() bool { return f.Ready() == nil })
	if f.denied() || len(f.List()) != 0 {
		t.Fatal("someone is denied by no list")
	}
}

func TestDamagedListAtTheStartIsNotReady(t *testing.T) {
	f := newStore(t, configMap("{"))
	f.run(t)
	eventually(t, "the damage is told", func() bool { err := f.Ready(); return err != nil && strings.Contains(err.Error(), "repaired") })
	f.store(t, encoded(t, of("a", start.Add(time.Hour))))
	eventually(t, "ready when it is repaired", func() bool { return f.Ready() == nil && f.denied() })
}

func TestDamageKeepsTheLastGoodList(t *testing.T) {
	f := newStore(t, configMap(encoded(t, of("a", start.Add(time.Hour)))))
	f.run(t)
	eventually(t, "denied", f.denied)
	f.store(t, "[{}]")
	eventually(t, "the metric says so", func() bool {
		n, err := testutil.GatherAndCount(f.reg, "bulwark_citadel_revocations_damaged")
		f.mu.RLock()
		defer f.mu.RUnlock()
		return err == nil && n == 1 && f.damage != nil
	})
	if !f.denied() || f.Ready() != nil {
		t.Fatal("the last good list is not followed")
	}
	if err := f.Undo(context.Background(), "a"); err == nil {
		t.Fatal("a damaged list was overwritten")
	}
	f.store(t, "")
	eventually(t, "an empty list is followed", func() bool { return !f.denied() })
}

func TestDeletedListStaysInForceAndIsPutBack(t *testing.T) {
	f := newStore(t, configMap(encoded(t, of("a", start.Add(time.Hour)))))
	f.run(t)
	eventually(t, "denied", f.denied)
	configs := f.client.CoreV1().ConfigMaps(mesh.Namespace)
	if err := configs.Delete(t.Context(), mesh.RevocationsConfig, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the list is back", func() bool {
		stored, err := configs.Get(t.Context(), mesh.RevocationsConfig, metav1.GetOptions{})
		if !f.denied() {
			t.Fatal("nobody is denied while the list is away")
		}
		return err == nil && strings.Contains(stored.Data[revocation.ConfigKey], payroll)
	})
	if err := f.Undo(t.Context(), "a"); err != nil || f.denied() {
		t.Fatalf("undone: %v, denied %t", err, f.denied())
	}
	if err := configs.Delete(t.Context(), mesh.RevocationsConfig, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(t.Context(), of("b", start.Add(time.Hour))); err != nil || !f.denied() {
		t.Fatalf("added after an empty list was deleted: %v", err)
	}
}

func TestAddAndUndo(t *testing.T) {
	ctx := context.Background()
	f := newStore(t)
	if err := f.Add(ctx, of("a", start.Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if !f.denied() {
		t.Fatal("not denied at once")
	}
	if err := f.Add(ctx, of("a", start.Add(time.Hour))); err == nil {
		t.Fatal("two of one name")
	}
	if err := f.Add(ctx, revocation.Revocation{Name: "b"}); err == nil {
		t.Fatal("a revocation of nobody")
	}
	if err := f.Undo(ctx, "other"); err == nil {
		t.Fatal("undone what is not there")
	}
	if err := f.Undo(ctx, "a"); err != nil || f.denied() {
		t.Fatalf("%v", err)
	}
}

func TestExpiredRevocationsLeaveTheList(t *testing.T) {
	ctx := context.Background()
	f := newStore(t)
	for name, end := range map[string]time.Duration{"short": time.Minute, "long": time.Hour} {
		if err := f.Add(ctx, of(name, start.Add(end))); err != nil {
			t.Fatal(err)
		}
	}
	f.clock.SetTime(start.Add(30 * time.Minute))
	if err := f.Clean(ctx); err != nil {
		t.Fatal(err)
	}
	stored, err := f.client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.RevocationsConfig, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := revocation.Parse(stored.Data)
	if err != nil || len(list) != 1 || list[0].Name != "long" {
		t.Fatalf("%v, %v", list, err)
	}
	f.client.ClearActions()
	if err := f.Clean(ctx); err != nil || len(f.client.Actions()) != 0 {
		t.Fatalf("%v; %d calls with nothing to remove", err, len(f.client.Actions()))
	}
}

// Each write is based on what is stored then, so none is lost when several write.
func TestWritesThatConflictAreRepeated(t *testing.T) {
	f := newStore(t, configMap(""))
	conflicts := 0
	var mu sync.Mutex
	f.client.PrependReactor("update", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if conflicts++; conflicts%2 == 1 {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, mesh.RevocationsConfig, errors.New("changed"))
		}
		return false, nil, nil
	})
	for i := range 3 {
		if err := f.Add(context.Background(), of(fmt.Sprint("r", i), start.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.List()); n != 3 || conflicts != 6 {
		t.Fatalf("%d revocations after %d tries", n, conflicts)
	}
}
