package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newStore(client kubernetes.Interface, clk *testclock.FakeClock) *Store {
	config := rotate.Config{TrustDomain: "cluster.local", KeyType: ca.P256, RootTTL: time.Hour}
	first := func(context.Context) (rotate.Signer, error) {
		m, err := ca.NewRoot("cluster.local", ca.P256, start, 1000*time.Hour)
		return rotate.Signer{Material: m, Origin: rotate.SelfSigned}, err
	}
	return New(client, config, clk, first, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func opened(t *testing.T, client kubernetes.Interface, clk *testclock.FakeClock) *Store {
	t.Helper()
	s := newStore(client, clk)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// running follows the Secret for as long as the test lasts.
func running(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

// watched waits for the watch: a fake client does not tell of what happens between a list and its watch.
func watched(t *testing.T, client *fake.Clientset) {
	t.Helper()
	eventually(t, "the watch is on", func() bool {
		for _, a := range client.Actions() {
			if a.GetVerb() == "watch" {
				return true
			}
		}
		return false
	})
}

func nextRoot(t *testing.T) rotate.Signer {
	t.Helper()
	m, err := ca.NewRoot("cluster.local", ca.P256, start, 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return rotate.Signer{Material: m, Origin: rotate.SelfSigned}
}

func begin(next rotate.Signer) func(rotate.CA) (rotate.CA, error) {
	return func(c rotate.CA) (rotate.CA, error) { return rotate.Begin(c, next, "test", start) }
}

func advance(c rotate.CA) (rotate.CA, error) { return rotate.Advance(c, start) }

func TestReplicasThatStartTogetherShareOneCA(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			s := newStore(client, clk)
			if err := s.Open(context.Background()); err != nil {
				t.Error(err)
				return
			}
			keys[i] = s.CA().Current.Material.Key
		})
	}
	wg.Wait()
	for i := range keys {
		if !bytes.Equal(keys[i], keys[0]) || len(keys[i]) == 0 {
			t.Fatalf("replica %d has another CA", i)
		}
	}
}

func TestUnreadableOrDamagedSecretIsNotOverwritten(t *testing.T) {
	away := fake.NewClientset()
	away.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("the API server is away")
	})
	empty := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.CASecret, Namespace: mesh.Namespace}})
	garbled := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.CASecret, Namespace: mesh.Namespace}, Data: map[string][]byte{stateKey: []byte("{")}})
	for name, c := range map[string]struct {
		client  *fake.Clientset
		damaged bool
	}{"API server away": {away, false}, "an empty Secret": {empty, true}, "garbled state": {garbled, true}} {
		err := newStore(c.client, testclock.NewFakeClock(start)).Open(t.Context())
		if err == nil || errors.As(err, &Damaged{}) != c.damaged {
			t.Errorf("%s: %v", name, err)
		}
		for _, a := range c.client.Actions() {
			if a.GetVerb() != "get" {
				t.Errorf("%s: did %s", name, a.GetVerb())
			}
		}
	}
}

// What is stored in each phase is read back whole, with its keys.
func TestEveryPhaseSurvivesARestart(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	for _, step := range []struct {
		change func(rotate.CA) (rotate.CA, error)
		phase  rotate.Phase
		roots  int
	}{{begin(nextRoot(t)), rotate.Publishing, 2}, {rotate.Pause, rotate.Publishing, 2}, {advance, rotate.Signing, 2}, {advance, rotate.Retiring, 1}, {advance, rotate.Idle, 1}} {
		if err := s.Update(t.Context(), step.change); err != nil {
			t.Fatal(err)
		}
		again := opened(t, client, clk)
		if !reflect.DeepEqual(again.CA(), s.CA()) {
			t.Errorf("in phase %q something was lost or added", step.phase)
		}
		if got := again.CA().Rotation.Phase; got != step.phase || len(again.Keeper().Current().Roots) != step.roots {
			t.Errorf("phase %q with %d roots, want %q with %d", got, len(again.Keeper().Current().Roots), step.phase, step.roots)
		}
	}
}

func TestOtherReplicasFollow(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	leader, other := opened(t, client, clk), opened(t, client, clk)
	running(t, other)
	if err := leader.Update(t.Context(), begin(nextRoot(t))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other replica publishes both roots", func() bool { return len(other.Keeper().Current().Roots) == 2 })
	if err := leader.Update(t.Context(), advance); err != nil {
		t.Fatal(err)
	}
	want := leader.Keeper().Current().Signer.Certificate()
	eventually(t, "the other replica signs with the new key", func() bool { return other.Keeper().Current().Signer.Certificate().Equal(want) })
}

func TestDamageAtRunTimeChangesNothing(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	running(t, s)
	before := s.Keeper().Current()
	for name, damage := range map[string]func(*corev1.Secret){
		"no key":        func(o *corev1.Secret) { delete(o.Data, mesh.CAKeyKey) },
		"garbled state": func(o *corev1.Secret) { o.Data[stateKey] = []byte("}") },
		"a missing partner": func(o *corev1.Secret) {
			o.Data[stateKey] = []byte(`{"sequence":7,"origin":"self-signed","rotation":{"phase":"signing"}}`)
		},
	} {
		secrets := client.CoreV1().Secrets(mesh.Namespace)
		o, err := secrets.Get(t.Context(), mesh.CASecret, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		good := o.DeepCopy()
		damage(o)
		if _, err := secrets.Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the damage is noticed", func() bool { return gauge(t, s) == 0 })
		if s.Keeper().Current() != before {
			t.Errorf("%s: the state changed", name)
		}
		unchanged := func(c rotate.CA) (rotate.CA, error) { return c, nil }
		if err := s.Update(t.Context(), unchanged); err == nil {
			t.Errorf("%s: it was written again as if it were good", name)
		}
		if _, err := secrets.Update(t.Context(), good, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the repair is noticed", func() bool { return gauge(t, s) == 1 })
	}
}

func TestDeletedSecretIsRestoredFromMemory(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	running(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Keep(ctx) })
	defer wg.Wait()
	defer cancel()
	secrets := client.CoreV1().Secrets(mesh.Namespace)
	watched(t, client)
	if err := secrets.Delete(t.Context(), mesh.CASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Secret is back", func() bool {
		o, err := secrets.Get(t.Context(), mesh.CASecret, metav1.GetOptions{})
		return err == nil && bytes.Equal(o.Data[mesh.CAKeyKey], s.CA().Current.Material.Key)
	})
}

// A restored etcd brings back the Secret of a CA whose root has been withdrawn since: what it signs nobody would believe.
func TestAnOlderCASecretIsPutForward(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	secrets := client.CoreV1().Secrets(mesh.Namespace)
	backup, err := secrets.Get(t.Context(), mesh.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(rotate.CA) (rotate.CA, error){begin(nextRoot(t)), advance, advance, advance} {
		if err := s.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	wanted := s.CA()
	if wanted.Sequence < 2 || wanted.Current.Origin != rotate.SelfSigned || bytes.Equal(wanted.Current.Material.Key, backup.Data[mesh.CAKeyKey]) {
		t.Fatalf("not rotated: %d", wanted.Sequence)
	}
	running(t, s)
	watched(t, client)
	restore := func() {
		t.Helper()
		if _, err := secrets.Update(t.Context(), backup, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(key []byte) bool {
		o, err := secrets.Get(t.Context(), mesh.CASecret, metav1.GetOptions{})
		return err == nil && bytes.Equal(o.Data[mesh.CAKeyKey], key)
	}
	restore()
	eventually(t, "the metric says so", func() bool { return testutil.ToFloat64(s.good) == 0 })
	if !bytes.Equal(s.CA().Current.Material.Key, wanted.Current.Material.Key) {
		t.Fatal("a replica that does not lead signs with the old root")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Keep(ctx) })
	defer wg.Wait()
	defer cancel()
	eventually(t, "the leader puts it forward", func() bool { return is(wanted.Current.Material.Key) && testutil.ToFloat64(s.good) == 1 })

	restore()
	if err := s.Update(t.Context(), func(c rotate.CA) (rotate.CA, error) { c.Sequence++; return c, nil }); err != nil {
		t.Fatal(err)
	}
	if c := s.CA(); c.Sequence != wanted.Sequence+1 || !is(wanted.Current.Material.Key) {
		t.Fatal("a change was made to what was restored")
	}
}

func TestNoNewCAIsMadeForAMeshThatHasOne(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig, Namespace: mesh.Namespace}})
	err := newStore(client, testclock.NewFakeClock(start)).Open(t.Context())
	if !errors.As(err, &Damaged{}) || !strings.Contains(err.Error(), mesh.TrustBundleConfig) {
		t.Fatalf("%v", err)
	}
	if _, err := client.CoreV1().Secrets(mesh.Namespace).Get(t.Context(), mesh.CASecret, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("a Secret was made: %v", err)
	}
}

// A CA that could not issue what peers accept is not stored.
func TestUselessCAIsNotStored(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	foreign, err := ca.NewRoot("elsewhere.example", ca.P256, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	before := s.CA()
	err = s.Update(t.Context(), func(c rotate.CA) (rotate.CA, error) {
		c.Current.Material = foreign
		return c, nil
	})
	if err == nil || !reflect.DeepEqual(opened(t, client, clk).CA(), before) {
		t.Fatalf("a root that is limited to another trust domain was stored: %v", err)
	}
}

func TestTokenKeysAreRotatedInTime(t *testing.T) {
	client, clk := fake.NewClientset(), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	first := s.Keeper().Current().Tokens.Signer.ID
	clk.SetTime(start.Add(24 * time.Hour))
	if err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	state := s.Keeper().Current()
	if state.Tokens.Signer.ID != first || len(state.Tokens.Published) != 2 || state.Sequence != 2 {
		t.Fatalf("the next key is to be published and not to sign yet: %d keys, bundle %d", len(state.Tokens.Published), state.Sequence)
	}
	clk.SetTime(start.Add(25 * time.Hour))
	if err := s.adopt(s.CA()); err != nil {
		t.Fatal(err)
	}
	if s.Keeper().Current().Tokens.Signer.ID == first {
		t.Fatal("the next key does not sign after its hour")
	}
	clk.SetTime(start.Add(27 * time.Hour))
	if err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state := s.Keeper().Current(); len(state.Tokens.Published) != 1 || state.Sequence != 3 {
		t.Fatalf("the old key is still published: %d keys, bundle %d", len(state.Tokens.Published), state.Sequence)
	}
}

func gauge(t *testing.T, s *Store) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.good)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

// A Secret from before there were rotations and JWT-SVIDs, or one that a person made, has certificates and a key only.
func TestSecretOfFourEntriesIsTakenAndCompleted(t *testing.T) {
	m := nextRoot(t).Material
	client, clk := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.CASecret, Namespace: mesh.Namespace}, Data: map[string][]byte{
		mesh.CACertKey: m.Cert, mesh.CAKeyKey: m.Key, mesh.CertChainKey: m.Chain, mesh.RootCertKey: m.Root}}), testclock.NewFakeClock(start)
	s := opened(t, client, clk)
	if state := s.Keeper().Current(); !bytes.Equal(state.RootsPEM, m.Root) || state.Sequence != 1 || state.Tokens != nil {
		t.Fatalf("bundle %d", state.Sequence)
	}
	if err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state := s.Keeper().Current(); !bytes.Equal(state.RootsPEM, m.Root) || state.Sequence != 2 || state.Tokens == nil {
		t.Fatalf("it has no key for JWT-SVIDs yet: bundle %d", state.Sequence)
	}
	if !bytes.Equal(opened(t, client, clk).CA().Current.Material.Key, m.Key) {
		t.Fatal("the key is another after a restart")
	}
}
