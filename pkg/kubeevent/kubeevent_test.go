package kubeevent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
)

// What another person does within minutes is told, and what is said again is counted. Without Apart, client-go loses it.
func TestNoTextIsLost(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := fake.NewClientset()
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	recorder := broadcaster.NewRecorder(scheme.Scheme, "test")
	of := &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: "bulwark-system"}
	notes := func() (apart, folded []string) {
		t.Helper()
		found, err := client.EventsV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found.Items {
			switch {
			case e.Reason == "Folded":
				folded = append(folded, e.Note)
			case e.Series != nil:
				apart = append(apart, e.Note+", again")
			default:
				apart = append(apart, e.Note)
			}
		}
		slices.Sort(apart)
		return apart, folded
	}
	for _, by := range []string{"alice", "bob", "alice"} {
		recorder.Eventf(of, nil, corev1.EventTypeNormal, "Folded", "Confirm", "by %s", by)
		recorder.Eventf(of, Apart(by), corev1.EventTypeNormal, "Apart", "Confirm", "by %s", by)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		apart, folded := notes()
		if strings.Join(apart, "; ") == "by alice, again; by bob" && len(folded) == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("told apart %q, and folded %q", apart, folded)
		}
	}
}
