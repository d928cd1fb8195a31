package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// lab is a writer on a fake API server and a registry fed by hand.
type lab struct {
	t      *testing.T
	client *fake.FakeDynamicClient
	reg    *registry.Registry
	writer *Writer
	end    context.CancelFunc
	ended  chan error
	answer atomic.Pointer[func() error] // of the API server to a write; a nil error lets it through
	writes atomic.Int64
}

func (l *lab) answers(f func() error) { l.answer.Store(&f) }

func newLab(t *testing.T) *lab {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{}
	for _, kind := range registry.Kinds() {
		lists[kind.Resource().GroupVersionResource] = kind.Resource().Kind + "List"
	}
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, reg: reg, client: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists), ended: make(chan error, 1)}
	l.answers(func() error { return nil })
	l.client.PrependReactor("patch", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "status" {
			t.Errorf("a write of %q, not of the status", a.GetSubresource())
		}
		l.writes.Add(1)
		err := (*l.answer.Load())()
		return err != nil, nil, err
	})
	l.writer = NewWriter(l.client, reg.Snapshot, l.stored, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	l.end = cancel
	go func() { l.ended <- l.writer.Run(ctx) }()
	return l
}

func (l *lab) close() {
	l.end()
	if err := <-l.ended; err != nil {
		l.t.Error(err)
	}
}

func (l *lab) stored(k registry.Kind, id string) *unstructured.Unstructured {
	namespace, name, _ := strings.Cut(id, "/")
	u, err := l.client.Tracker().Get(k.Resource().GroupVersionResource, namespace, name)
	if err != nil {
		return nil
	}
	return u.(*unstructured.Unstructured)
}

func policy(name, action string, generation int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "a", "name": name, "generation": generation},
		"spec":     map[string]any{"action": action, "rules": []any{map[string]any{}}}}}
}

// apply stores policies, keeping their status, and shows them to the registry.
func (l *lab) apply(policies ...*unstructured.Unstructured) {
	l.t.Helper()
	var events []registry.Event
	for _, p := range policies {
		id := p.GetNamespace() + "/" + p.GetName()
		var err error
		if old := l.stored(registry.Policies, id); old != nil {
			p.Object["status"] = old.Object["status"]
			err = l.client.Tracker().Update(registry.Policies.Resource().GroupVersionResource, p, p.GetNamespace())
		} else {
			err = l.client.Tracker().Create(registry.Policies.Resource().GroupVersionResource, p, p.GetNamespace())
		}
		if err != nil {
			l.t.Fatal(err)
		}
		e, err := registry.Policies.Event(p, fixture.Options)
		if err != nil {
			l.t.Fatal(err)
		}
		events = append(events, e)
	}
	changes, err := l.reg.Apply(events)
	if err != nil {
		l.t.Fatal(err)
	}
	l.writer.Apply(l.reg.Snapshot(), changes)
}

// enforceable returns a policy's condition as "<status> <generation>".
func (l *lab) enforceable(name string) string {
	l.t.Helper()
	out := ""
	for _, c := range l.conditions(name) {
		if m := c.(map[string]any); m["type"] == Type {
			out += fmt.Sprint(m["status"], " ", m["observedGeneration"])
		}
	}
	return out
}

// conditions are those that a policy has.
func (l *lab) conditions(name string) []any {
	l.t.Helper()
	u, err := l.client.Resource(registry.Policies.Resource().GroupVersionResource).Namespace("a").Get(l.t.Context(), name, meta.GetOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return conditions
}

func (l *lab) expect(name, want string) {
	l.t.Helper()
	if got := l.enforceable(name); got != want {
		l.t.Errorf("%s: %q, want %q", name, got, want)
	}
}

func TestOnlyPoliciesThatAreOrWereBadAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.apply(policy("good", "DENY", 1), policy("bad", "CUSTOM", 1))
		synctest.Wait()
		l.expect("good", "")
		l.expect("bad", "False 1")
		l.apply(policy("good", "ALLOW", 2), policy("bad", "DENY", 2))
		time.Sleep(2 * objectGap)
		l.expect("good", "")
		l.expect("bad", "True 2")
		time.Sleep(24 * time.Hour)
		if n := l.writes.Load(); n != 2 {
			t.Errorf("%d writes, want 2", n)
		}
	})
}

func TestStatusThatSomeoneElseTookAwayComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.apply(policy("bad", "CUSTOM", 1))
		synctest.Wait()
		if err := l.client.Tracker().Update(registry.Policies.Resource().GroupVersionResource, policy("bad", "CUSTOM", 1), "a"); err != nil {
			t.Fatal(err)
		}
		l.expect("bad", "")
		time.Sleep(lookEvery + time.Second)
		l.expect("bad", "False 1")
	})
}

func TestFailingWritesArePutOffAndCaughtUp(t *testing.T) {
	for name, failure := range map[string]error{
		"conflict":    apierrors.NewConflict(schema.GroupResource{}, "bad", errors.New("changed")),
		"unavailable": apierrors.NewServiceUnavailable("etcd"),
		"forbidden":   apierrors.NewForbidden(schema.GroupResource{}, "bad", errors.New("no")),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				l.answers(func() error { return failure })
				l.apply(policy("bad", "CUSTOM", 1))
				time.Sleep(24 * time.Hour)
				if n := l.writes.Load(); n < 100 || n > 1000 {
					t.Errorf("%d writes in a day", n)
				}
				l.answers(func() error { return nil })
				time.Sleep(2 * longestWait)
				l.expect("bad", "False 1")
			})
		})
	}
}

func TestManyBadPoliciesAreWrittenSlowlyAndAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		const n = 50
		var policies []*unstructured.Unstructured
		for i := range n {
			policies = append(policies, policy(fmt.Sprint("bad", i), "CUSTOM", 1))
		}
		l.apply(policies...)
		time.Sleep(n/2*writeGap - writeGap/2)
		if w := l.writes.Load(); w > n/2 || w < n/2-2 {
			t.Errorf("%d writes after half the time", w)
		}
		time.Sleep(n * writeGap)
		for i := range n {
			l.expect(fmt.Sprint("bad", i), "False 1")
		}
		if got := testutil.ToFloat64(l.writer.writes.WithLabelValues("written")); got != n {
			t.Errorf("%v writes counted", got)
		}
	})
}

// What a policy becomes while its status is being written is written next.
func TestChangeDuringAWriteIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		began, goOn := make(chan struct{}), make(chan struct{})
		l.answers(func() error {
			close(began)
			<-goOn
			return nil
		})
		l.apply(policy("bad", "CUSTOM", 1))
		<-began
		l.apply(policy("bad", "CUSTOM", 2))
		l.answers(func() error { return nil })
		close(goOn)
		time.Sleep(time.Minute)
		l.expect("bad", "False 2")
	})
}

func TestPolicyThatWentIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.answers(func() error { return apierrors.NewServiceUnavailable("etcd") })
		l.apply(policy("bad", "CUSTOM", 1))
		time.Sleep(time.Minute)
		if _, err := l.reg.Apply([]registry.Event{{Kind: registry.Policies, ID: "a/bad"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(longestWait)
		if n := l.writer.backlog.size(); n != 0 || len(l.writer.backlog.tries) != 0 {
			t.Errorf("%d wait, %d failures remembered", n, len(l.writer.backlog.tries))
		}
	})
}

func TestBacklogIsBounded(t *testing.T) {
	b := newBacklog(func() float64 { return 0 })
	for i := range 2 * maxBacklog {
		b.add(registry.PolicyRef{Kind: registry.Policies, ID: fmt.Sprint(i)}, noon)
	}
	if n := b.size(); n != maxBacklog {
		t.Errorf("%d items", n)
	}
}
