package podwatch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func pod(namespace, name, uid string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: "node1", ServiceAccountName: "payroll"},
	}
}

func newWatch(t *testing.T, client *fake.Clientset) *Watch {
	t.Helper()
	w, err := New(client, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	wait, cancelWait := context.WithTimeout(ctx, 10*time.Second)
	defer cancelWait()
	if err := w.WaitSynced(wait); err != nil {
		t.Fatal(err)
	}
	return w
}

// until looks again at each change until what is looked for is there.
func until(t *testing.T, w *Watch, what string, is func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		changed := w.Changed()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestWatchFollowsPods(t *testing.T) {
	ctx := context.Background()
	client := fake.NewClientset(pod("finance", "payroll-1", "u1"),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "finance", Name: "payroll", UID: "a1"}})
	w := newWatch(t, client)
	want := Pod{Namespace: "finance", Name: "payroll-1", UID: "u1", Node: "node1", ServiceAccount: "payroll"}
	if got, ok := w.Get("finance", "payroll-1"); !ok || got != want {
		t.Fatalf("%+v, %t", got, ok)
	}
	if got, ok := w.ByUID("u1"); !ok || got != want {
		t.Fatalf("by UID: %+v, %t", got, ok)
	}
	if uid, ok := w.Account("finance", "payroll"); !ok || uid != "a1" {
		t.Fatalf("account %q, %t", uid, ok)
	}
	if _, ok := w.Account("finance", "nobody"); ok {
		t.Fatal("an account that does not exist")
	}
	if _, err := client.CoreV1().Pods("finance").Create(ctx, pod("finance", "payroll-2", "u2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, w, "a new pod", func() bool { _, ok := w.ByUID("u2"); return ok && len(w.All()) == 2 })
	gone := pod("finance", "payroll-1", "u1")
	gone.DeletionTimestamp = &metav1.Time{Time: start}
	if _, err := client.CoreV1().Pods("finance").Update(ctx, gone, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, w, "its deletion", func() bool { p, _ := w.Get("finance", "payroll-1"); return p.DeletedAt.Equal(start) })
	if err := client.CoreV1().Pods("finance").Delete(ctx, "payroll-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, w, "its end", func() bool { _, ok := w.Get("finance", "payroll-1"); return !ok })
	if _, ok := w.ByUID("u1"); ok {
		t.Fatal("a pod that is gone is found by its UID")
	}
}

func TestWatchAnswersWhileTheAPIServerIsAway(t *testing.T) {
	client := fake.NewClientset(pod("finance", "payroll-1", "u1"))
	stream := watch.NewFake()
	client.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) { return true, stream, nil })
	w := newWatch(t, client)
	asked := make(chan struct{}, 100)
	away := func(clienttesting.Action) (bool, runtime.Object, error) {
		asked <- struct{}{}
		return true, nil, errors.New("connection refused")
	}
	client.PrependReactor("list", "pods", away)
	client.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) {
		asked <- struct{}{}
		return true, nil, errors.New("connection refused")
	})
	stream.Stop()
	for range 2 {
		select {
		case <-asked:
		case <-time.After(20 * time.Second):
			t.Fatal("the watch was not asked for again")
		}
	}
	if p, ok := w.Get("finance", "payroll-1"); !ok || p.UID != "u1" {
		t.Fatalf("%+v, %t", p, ok)
	}
}

func TestWhatIsKeptOfAPod(t *testing.T) {
	with := func(change func(*corev1.Pod)) Pod {
		p := pod("finance", "p", "u")
		change(p)
		return Of(p)
	}
	projected := func(s corev1.VolumeProjection) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{s}}}}}
		}
	}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		is     func(Pod) bool
	}{
		"nothing more": {func(*corev1.Pod) {}, func(p Pod) bool {
			return !p.Ended && !p.Ready && p.Component == "" && !p.MountsSecret && !p.MountsBundle && p.DeletedAt.IsZero()
		}},
		"failed":    {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, func(p Pod) bool { return p.Ended }},
		"succeeded": {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, func(p Pod) bool { return p.Ended }},
		"ready": {func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}, func(p Pod) bool { return p.Ready }},
		"a component's labels in another namespace": {func(p *corev1.Pod) {
			p.Labels = map[string]string{mesh.PartOfLabel: mesh.PartOfValue, nameLabel: "agent"}
		}, func(p Pod) bool { return p.Component == "" }},
		"a component": {func(p *corev1.Pod) {
			p.Namespace, p.Labels = mesh.Namespace, map[string]string{mesh.PartOfLabel: mesh.PartOfValue, nameLabel: "agent"}
		}, func(p Pod) bool { return p.Component == "agent" }},
		"a Secret": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "bulwark.payroll"}}}}
		}, func(p Pod) bool { return p.MountsSecret && !p.MountsBundle }},
		"another Secret": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password"}}}}
		}, func(p Pod) bool { return !p.MountsSecret }},
		"a projected Secret": {projected(corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "bulwark.payroll"}}}),
			func(p Pod) bool { return p.MountsSecret }},
		"a projected bundle": {projected(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: mesh.TrustBundleConfig}}}),
			func(p Pod) bool { return p.MountsBundle && !p.MountsSecret }},
	} {
		if p := with(c.change); !c.is(p) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
