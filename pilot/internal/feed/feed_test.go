package feed

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// testFeed is a feed of a fake API server.
type testFeed struct {
	*Feed
	kube *fake.Clientset
	dyn  *dynamicfake.FakeDynamicClient
}

// unstarted returns a feed that has only what it is given by hand.
func unstarted(t *testing.T) *testFeed {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range registry.Kinds() {
		lists[k.Resource().GroupVersionResource] = k.Resource().Kind + "List"
	}
	kube, dyn := fake.NewClientset(), dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	f, err := New(reg, kube, dyn, authz.Options{TrustDomain: "cluster.local", RootNamespace: mesh.Namespace},
		NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &testFeed{f, kube, dyn}
}

// start has the feed follow its API server, and returns when it has listed what is there.
func (f *testFeed) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx, func(*registry.Snapshot, []registry.Change) {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "synced", func() bool { return f.Synced() == nil })
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}

// changes applies what waits, and returns the changes by kind and ID, with what each did.
func (f *testFeed) changes(t *testing.T) (batches int, did map[string]string) {
	t.Helper()
	did = map[string]string{}
	err := f.apply(func(_ *registry.Snapshot, changes []registry.Change) {
		batches++
		for _, c := range changes {
			what := "changed"
			if c.Old == nil {
				what = "came"
			} else if c.New == nil {
				what = "went"
			}
			did[c.Kind.String()+" "+c.ID] += what
		}
	})
	if err != nil || len(f.events) != 0 {
		t.Fatalf("%d events still wait: %v", len(f.events), err)
	}
	return batches, did
}

func named(name string) meta.ObjectMeta { return meta.ObjectMeta{Namespace: "a", Name: name} }

func service(name, ip string) *core.Service {
	return &core.Service{ObjectMeta: named(name), Spec: core.ServiceSpec{ClusterIPs: []string{ip}}}
}

func TestEveryKindIsWatched(t *testing.T) {
	f := unstarted(t)
	list := `[{"name":"r","identity":"spiffe://cluster.local/ns/a/sa/b","created":"2026-01-01T00:00:00Z","expires":"2999-01-01T00:00:00Z"}]`
	for _, o := range []runtime.Object{
		&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: mesh.Namespace, Name: mesh.RevocationsConfig}, Data: map[string]string{revocation.ConfigKey: list}},
		&core.Service{ObjectMeta: named("s")}, &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "a"}},
		&core.LimitRange{ObjectMeta: named("l")},
		&networking.ServiceCIDR{ObjectMeta: meta.ObjectMeta{Name: "kubernetes"}}, &core.Node{ObjectMeta: meta.ObjectMeta{Name: "n"}},
		&discovery.EndpointSlice{ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "s", Labels: map[string]string{discovery.LabelServiceName: "s"}}},
		&core.Pod{ObjectMeta: named("p"), Spec: core.PodSpec{Containers: []core.Container{{Name: "c", Image: "i"}}}},
	} {
		if err := f.kube.Tracker().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range registry.Kinds() {
		if !k.IsPolicy() {
			continue
		}
		r := k.Resource()
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(r.GroupVersion().WithKind(r.Kind))
		o.SetNamespace("a")
		o.SetName("p")
		if _, err := f.dyn.Resource(r.GroupVersionResource).Namespace("a").Create(t.Context(), o, meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f.start(t)
	for _, k := range registry.Kinds() {
		if n := testutil.ToFloat64(f.metrics.objects.WithLabelValues(k.String())); n != 1 {
			t.Errorf("%v objects of the kind %s", n, k)
		}
	}
	for _, s := range f.sources {
		if s.kind == registry.Pods {
			if pod := s.informer.GetStore().List()[0].(*core.Pod); pod.Spec.Containers[0].Image != "" {
				t.Errorf("the informer keeps what nobody reads: %+v", pod.Spec)
			}
		}
	}
	if f.Stored(registry.Policies, "a/p") == nil || f.Stored(registry.Policies, "a/q") != nil ||
		f.Stored(registry.PeerAuths, "a/p").GetKind() != "PeerAuthentication" {
		t.Error("not what is stored")
	}
}

func TestWhatHappensToAnObjectMeanwhileIsOneChange(t *testing.T) {
	f := unstarted(t)
	h := f.handler(registry.Services)
	h.OnAdd(service("a", "10.96.0.1"), false)
	h.OnAdd(service("b", "10.96.0.2"), false)
	h.OnAdd(service("c", "10.96.0.3"), false)
	h.OnUpdate(nil, service("a", "10.96.0.4"))
	h.OnDelete(service("b", "10.96.0.2"))
	f.handler(registry.Pods).OnAdd(&core.Pod{ObjectMeta: named("a")}, false)
	if n, did := f.changes(t); n != 1 || fmt.Sprint(did) != "map[pod a/a:came service a/a:came service a/c:came]" {
		t.Errorf("%d batches: %v", n, did)
	}
	if ips := f.reg.Snapshot().Service("a/a").ClusterIPs; ips[0] != "10.96.0.4" {
		t.Errorf("not the last: %v", ips)
	}
	h.OnUpdate(nil, service("a", "10.96.0.5"))
	h.OnUpdate(nil, service("a", "10.96.0.4"))
	if n, did := f.changes(t); n != 0 {
		t.Errorf("nothing differs, but %v", did)
	}
	h.OnDelete(service("a", ""))
	h.OnAdd(service("a", "10.96.0.6"), false)
	external := service("c", "")
	external.Spec.Type = core.ServiceTypeExternalName
	h.OnUpdate(nil, external)
	if n, did := f.changes(t); n != 1 || fmt.Sprint(did) != "map[service a/a:changed service a/c:went]" {
		t.Errorf("%d batches: %v", n, did)
	}
}

// tombstone is how an informer tells of what is missing in a list.
func tombstone(name string) cache.DeletedFinalStateUnknown {
	return cache.DeletedFinalStateUnknown{Key: "a/" + name, Obj: service(name, "")}
}

func TestWhatIsMissingInAListGoesUnlessItIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := unstarted(t)
		h := f.handler(registry.Services)
		for _, name := range []string{"gone", "seen", "deleted"} {
			h.OnAdd(service(name, "10.96.0.1"), false)
		}
		f.changes(t)
		for _, name := range []string{"gone", "seen", "deleted"} {
			h.OnUpdate(nil, service(name, "10.96.0.2")) // is not applied any more when it is missing
			h.OnDelete(tombstone(name))
		}
		if wait := f.settle(); wait != settleTime {
			t.Errorf("judged in %s", wait)
		}
		h.OnAdd(service("seen", "10.96.0.3"), false)
		h.OnDelete(service("deleted", ""))
		if _, did := f.changes(t); fmt.Sprint(did) != "map[service a/deleted:went service a/seen:changed]" {
			t.Errorf("at once: %v", did)
		}
		time.Sleep(settleTime)
		if _, did := f.changes(t); fmt.Sprint(did) != "map[service a/gone:went]" {
			t.Errorf("when the list is through: %v", did)
		}
	})
}

func TestListThatLacksMostIsHeldUntilItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := unstarted(t)
		var told []int
		f.OnHeld(func(n int) { told = append(told, n) })
		h := f.handler(registry.Services)
		for i := range 10 {
			h.OnAdd(service(fmt.Sprint(i), "10.96.0.1"), false)
		}
		f.changes(t)
		for i := range 7 {
			h.OnDelete(tombstone(fmt.Sprint(i)))
		}
		for range 3 {
			time.Sleep(settleTime)
			if n, did := f.changes(t); n != 0 {
				t.Fatalf("not held: %v", did)
			}
		}
		h.OnAdd(service("0", "10.96.0.2"), false) // goes on being followed, and is not missing after all
		if _, did := f.changes(t); fmt.Sprint(did) != "map[service a/0:changed]" {
			t.Errorf("while some are held: %v", did)
		}
		held := f.Held()
		if len(held) != 1 || held[0].Kind != "service" || held[0].Count != 6 || testutil.ToFloat64(f.metrics.held) != 6 || fmt.Sprint(told) != "[7]" {
			t.Errorf("held %+v, the metric says %v, told of %v", held, testutil.ToFloat64(f.metrics.held), told)
		}
		if err := f.Confirm(7); err == nil {
			t.Error("confirmed what is not held any more")
		}
		if n, _ := f.changes(t); n != 0 {
			t.Error("let through without a confirmation")
		}
		if err := f.Confirm(6); err != nil {
			t.Fatal(err)
		}
		if _, did := f.changes(t); len(did) != 6 || f.reg.Size(registry.Services) != 4 || len(f.Held()) != 0 || testutil.ToFloat64(f.metrics.held) != 0 {
			t.Errorf("confirmed: %v, %+v held", did, f.Held())
		}
	})
}

func TestUnenforceablePoliciesAreCounted(t *testing.T) {
	f := unstarted(t)
	h := f.handler(registry.Policies)
	policy := func(name, action string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"namespace": "a", "name": name}, "spec": map[string]any{"action": action}}}
	}
	expect := func(want float64) {
		t.Helper()
		f.changes(t)
		if got := testutil.ToFloat64(f.metrics.unenforceable.WithLabelValues("AuthorizationPolicy")); got != want {
			t.Errorf("%v policies, want %v", got, want)
		}
		if n := len(registry.Unenforceable(f.reg.Snapshot())); n != int(want) {
			t.Errorf("%d listed, want %v", n, want)
		}
	}
	if n := testutil.CollectAndCount(f.metrics.unenforceable); n != 6 {
		t.Errorf("%d kinds are counted before there is a policy", n)
	}
	h.OnAdd(policy("bad", "CUSTOM"), false)
	h.OnAdd(policy("worse", "CUSTOM"), false)
	h.OnAdd(policy("good", "ALLOW"), false)
	expect(2)
	h.OnUpdate(nil, policy("bad", "NONSENSE"))
	expect(2)
	h.OnUpdate(nil, policy("bad", "ALLOW"))
	expect(1)
	h.OnDelete(policy("worse", ""))
	expect(0)
}

// An API server that does not know a kind, because it is too old or the kind's CRD is missing, keeps Pilot from being ready, and
// Pilot says which kind that is.
func TestKindThatTheAPIServerLacksIsNamed(t *testing.T) {
	f := unstarted(t)
	lacks := schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
	f.kube.PrependReactor("list", lacks.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(lacks, "")
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx, func(*registry.Snapshot, []registry.Change) {}) }()
	eventually(t, "all else is listed", func() bool {
		return fmt.Sprint(f.Synced()) == "the API server has not listed servicecidrs.networking.k8s.io yet"
	})
	eventually(t, "the failures are counted", func() bool {
		return testutil.ToFloat64(f.metrics.watchErrors.WithLabelValues(registry.ServiceCIDRs.String())) > 0
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
