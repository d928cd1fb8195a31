package feed

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const stolen = "spiffe://cluster.local/ns/shop/sa/stolen"

func entry(name, serial string, expires time.Time) revocation.Revocation {
	return revocation.Revocation{Name: name, Identity: stolen, Serial: serial, Created: expires.Add(-time.Hour), Expires: expires}
}

func TestRevocationThatEndsIsAChange(t *testing.T) {
	now := time.Now()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	r := revocations{}
	r.set(revocation.List{entry("a", "", now.Add(time.Minute)), entry("a", "ab", now.Add(time.Hour)), entry("over", "", now)})
	apply := func(at time.Time) int {
		t.Helper()
		changes, err := reg.Apply(r.events(at))
		if err != nil {
			t.Fatal(err)
		}
		return len(changes)
	}
	if n := apply(now); n != 2 || !reg.Snapshot().Revoked(stolen) {
		t.Fatalf("%d changes at first", n)
	}
	if due := r.due(); !due.Equal(now.Add(time.Minute)) {
		t.Fatalf("looked at again at %s", due)
	}
	if n := apply(now.Add(59 * time.Second)); n != 0 {
		t.Fatalf("%d changes before anything ended", n)
	}
	if n := apply(now.Add(time.Minute)); n != 1 || reg.Snapshot().Revoked(stolen) {
		t.Fatalf("%d changes when the first ended", n)
	}
	r.set(nil)
	if n := apply(now.Add(time.Minute)); n != 1 || len(slices.Collect(reg.Snapshot().Revocations())) != 0 || !r.due().IsZero() {
		t.Fatalf("%d changes when the list was emptied", n)
	}
}

func TestDamagedOrDeletedListLeavesTheLastInForce(t *testing.T) {
	feed := unstarted(t)
	feed.start(t)
	reg, maps := feed.reg, feed.kube.CoreV1().ConfigMaps(mesh.Namespace)
	write := func(text string) {
		t.Helper()
		m := &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mesh.RevocationsConfig, Namespace: mesh.Namespace}, Data: map[string]string{revocation.ConfigKey: text}}
		if _, err := maps.Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
			if _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	damaged := func() bool { return testutil.ToFloat64(feed.metrics.badRevocations) == 1 }
	encode := func(l ...revocation.Revocation) string {
		t.Helper()
		text, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	write(encode(entry("a", "", time.Now().Add(time.Hour))))
	eventually(t, "revoked", func() bool { return reg.Snapshot().Revoked(stolen) })
	write("{rubbish")
	eventually(t, "told", damaged)
	if !reg.Snapshot().Revoked(stolen) {
		t.Fatal("a damaged list undid a revocation")
	}
	write(encode(entry("b", "", time.Now().Add(2*time.Second))))
	eventually(t, "sound again", func() bool { return !damaged() })
	eventually(t, "its end, without anything else happening", func() bool { return !reg.Snapshot().Revoked(stolen) })
	write(encode(entry("c", "", time.Now().Add(time.Hour))))
	eventually(t, "revoked", func() bool { return reg.Snapshot().Revoked(stolen) })
	if err := maps.Delete(t.Context(), mesh.RevocationsConfig, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	write("{rubbish") // comes after the deletion
	eventually(t, "told", damaged)
	if !reg.Snapshot().Revoked(stolen) {
		t.Fatal("a deleted list undid a revocation")
	}
}
