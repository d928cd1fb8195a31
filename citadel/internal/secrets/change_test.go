package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func (w *world) addAccounts(ns string, n int) {
	w.t.Helper()
	for i := range n {
		if _, err := w.client.CoreV1().ServiceAccounts(ns).Create(context.Background(), account(ns, fmt.Sprint("a", i), fmt.Sprint("n", i)), metav1.CreateOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) settled(accounts int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d accounts are ready", accounts), func() bool {
		p := w.ctl.Progress()
		return p.Accounts == accounts && p.Ready == accounts && !p.Syncing
	})
}

func (w *world) count(r Reason) float64 {
	return testutil.ToFloat64(w.ctl.written.WithLabelValues(string(r)))
}

// The three steps of a root rotation, as the Secrets see them.
func TestRootRotationReplacesBundlesAtOnceAndCertificatesWithinItsTime(t *testing.T) {
	w := newWorld(t)
	w.addAccounts("finance", 20)
	w.settled(21)
	before := w.get("finance", "a3")

	old := w.authority.Current()
	next := newSigner(t, w.clock, old, time.Hour)
	published := *old
	published.Roots, published.RootsPEM = next.Roots, next.RootsPEM
	w.authority.Set(&published)
	w.settled(21)
	after := w.get("finance", "a3")
	if string(after.Data[mesh.CertChainKey]) != string(before.Data[mesh.CertChainKey]) || string(after.Data[mesh.RootCertKey]) != string(next.RootsPEM) {
		t.Fatal("more or less than the bundle was replaced")
	}
	if n := w.count(BundleChanged); n != 21 {
		t.Fatalf("%v bundles replaced, of 21", n)
	}

	w.authority.Set(next)
	eventually(t, "all are known to be of the old signer, or replaced", func() bool { p := w.ctl.Progress(); return p.OldSigner+p.Ready == 21 && !p.Syncing })
	p := w.ctl.Progress()
	if p.OldSigner < 10 {
		t.Fatalf("replaced at once, not in the course of an hour: %+v", p)
	}
	w.advance(time.Hour)
	w.settled(21)

	last := *next
	last.Roots, last.RootsPEM = next.Signer.Roots(), next.Signer.RootsPEM()
	w.authority.Set(&last)
	w.settled(21)
	if n := w.count(SignerChanged); n != 21 {
		t.Fatalf("%v certificates replaced for the signer, of 21", n)
	}
	if n := w.count(Untrusted); n != 0 {
		t.Fatalf("%v Secrets did not verify on the way", n)
	}
}

func TestNewAccountsDoNotWaitForARootRotation(t *testing.T) {
	w := newWorld(t)
	w.addAccounts("finance", 300)
	w.settled(301)
	// The API server takes two milliseconds for a write of a Secret, and the account appears while it is busy.
	var rewrites, before atomic.Int64
	w.client.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		time.Sleep(2 * time.Millisecond)
		if rewrites.Add(1) == 10 {
			for _, obj := range []runtime.Object{namespace("new", nil), account("new", "a0", "n0")} {
				if err := w.client.Tracker().Add(obj); err != nil {
					t.Error(err)
				}
			}
		}
		return false, nil, nil
	})
	w.client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		before.Store(rewrites.Load())
		return false, nil, nil
	})
	w.authority.Set(newSigner(t, w.clock, w.authority.Current(), 0))
	w.settled(302)
	if n := before.Load(); n < 10 || n > 150 {
		t.Fatalf("the new account came after %d of 301 rewrites", n)
	}
}

func TestARestartWritesNothingThatIsAsItShouldBe(t *testing.T) {
	w := newWorld(t)
	w.addAccounts("finance", 50)
	w.settled(51)
	w.stop()
	if p := w.ctl.Progress(); p.Leading {
		t.Fatalf("still leading: %+v", p)
	}
	w.client.ClearActions()
	w.start()
	w.settled(51)
	for _, a := range w.client.Actions() {
		if a.GetVerb() != "list" && a.GetVerb() != "watch" {
			t.Fatalf("%s of %s after a restart", a.GetVerb(), a.GetResource().Resource)
		}
	}
}

// Something that spoils the Secret whenever it is written does not make Citadel write without end.
func TestAFightOverASecretIsBounded(t *testing.T) {
	w := newWorld(t)
	w.settled(1)
	var peace atomic.Bool
	w.client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if !peace.Load() {
			a.(clienttesting.UpdateAction).GetObject().(*corev1.Secret).Data["extra"] = []byte("of an admission webhook")
		}
		return false, nil, nil
	})
	s := w.get("finance", "payroll").DeepCopy()
	s.Data["extra"] = []byte("x")
	w.update(s)
	eventually(t, "many repairs", func() bool { return w.count(Edited) >= repairBurst })
	peace.Store(true)
	w.addAccounts("finance", 1)
	eventually(t, "others are served", func() bool { return w.good("finance", "a0", "n0") })
	if n := w.count(Edited); n > repairBurst+1 {
		t.Fatalf("%v repairs while no time has passed", n)
	}
	w.advance(2 * time.Minute)
	eventually(t, "repaired in the end", func() bool { return w.good("finance", "payroll", "u1") })
}

func TestNamespacesOptInWhereTheyMust(t *testing.T) {
	w := newWorldOf(t, func(c *Config) { c.OptIn = true })
	eventually(t, "synced", func() bool { p := w.ctl.Progress(); return p.Leading && !p.Syncing })
	if w.get("finance", "payroll") != nil {
		t.Fatal("a namespace that did not opt in has a Secret")
	}
	for _, step := range []struct {
		label string
		want  bool
	}{{"enabled", true}, {"disabled", false}, {"enabled", true}, {"", false}} {
		ns := namespace("finance", map[string]string{mesh.SecretsLabel: step.label})
		if _, err := w.client.CoreV1().Namespaces().Update(context.Background(), ns, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("label %q", step.label), func() bool { return (w.get("finance", "payroll") != nil) == step.want })
	}
}

func TestIssuanceIsToldToTheAudit(t *testing.T) {
	var mu sync.Mutex
	var got []string
	w := newWorldOf(t, func(c *Config) {
		c.Audit = func(reason string, id spiffe.ID, serial string) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, reason+" "+id.String()+" "+serial)
		}
	})
	w.settled(1)
	first := w.get("finance", "payroll")
	if err := w.client.CoreV1().Secrets("finance").Delete(context.Background(), "bulwark.payroll", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "restored", func() bool { return w.good("finance", "payroll", "u1") })
	w.settled(1)
	var want []string
	for reason, s := range map[Reason]*corev1.Secret{Created: first, Deleted: w.get("finance", "payroll")} {
		pair, _ := readPair(s)
		want = append(want, string(reason)+" spiffe://cluster.local/ns/finance/sa/payroll "+pair.Leaf.SerialNumber.Text(16))
	}
	mu.Lock()
	defer mu.Unlock()
	for _, line := range want {
		if !strings.Contains(strings.Join(got, "\n"), line) {
			t.Fatalf("%q is not in %q", line, got)
		}
	}
	if e := <-w.events.Events; !strings.Contains(e, "SecretDeleted") {
		t.Fatalf("event %q", e)
	}
}

// What alerts and dashboards are made of: nothing more, nothing less, and each what it says.
func TestProgressIsMetrics(t *testing.T) {
	series := func(accounts, ready, missing, foreign, oldBundle, oldSigner, due int, overdue, last float64) string {
		var out strings.Builder
		for _, m := range []struct {
			name, help string
			value      float64
		}{
			{"accounts", "Service accounts that should have a Secret; 0 on a replica that does not reconcile.", float64(accounts)},
			{"ready", "Service accounts whose Secret was verified and has the current signer and bundle.", float64(ready)},
			{"missing", "Service accounts without a usable Secret.", float64(missing)},
			{"foreign", "Service accounts whose Secret's name is taken by an object that is not Citadel's.", float64(foreign)},
			{"old_bundle", "Secrets with an earlier trust bundle.", float64(oldBundle)},
			{"old_signer", "Secrets with a certificate of an earlier signer.", float64(oldSigner)},
			{"due", "Secrets whose certificate is due for renewal.", float64(due)},
			{"overdue_seconds", "How long the oldest of these has been due.", overdue},
			{"last_write_timestamp_seconds", "When this replica last wrote a Secret.", last},
		} {
			fmt.Fprintf(&out, "# HELP bulwark_citadel_secrets_%[1]s %[2]s\n# TYPE bulwark_citadel_secrets_%[1]s gauge\nbulwark_citadel_secrets_%[1]s %[3]v\n", m.name, m.help, m.value)
		}
		return out.String()
	}
	w := newWorld(t)
	w.settled(1)
	last := func() float64 { return float64(w.ctl.Progress().LastWrite.UnixMilli()) / 1000 }
	if err := testutil.CollectAndCompare(collector{w.ctl}, strings.NewReader(series(1, 1, 0, 0, 0, 0, 0, 0, last()))); err != nil {
		t.Error(err)
	}
	if got := w.clock.Now().Sub(w.ctl.Progress().LastWrite); got < 0 || got > time.Second {
		t.Errorf("the last write is %s old", got)
	}

	// One whose Secret's name is taken, two that cannot be written, and one that is due and of an earlier signer and bundle.
	w.client.PrependReactor("*", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		write, ok := a.(clienttesting.CreateAction) // or an update, which is like it
		if !ok || write.GetObject().(metav1.Object).GetName() == mesh.SecretPrefix+"taken" {
			return false, nil, nil
		}
		return true, nil, errors.New("the API server takes no Secrets")
	})
	if err := w.client.Tracker().Add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "finance", Name: mesh.SecretPrefix + "taken"}, Type: corev1.SecretTypeOpaque}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"taken", "a0", "a1"} {
		if _, err := w.client.CoreV1().ServiceAccounts("finance").Create(t.Context(), account("finance", name, "u-"+name), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w.authority.Set(newSigner(t, w.clock, w.authority.Current(), time.Hour))
	w.advance(20 * time.Hour)
	eventually(t, "all of it is seen", func() bool {
		p := w.ctl.Progress()
		return p.Accounts == 4 && p.Foreign == 1 && p.Missing == 2 && p.OldBundle == 1 && p.OldSigner == 1 && p.Due == 1
	})
	scheduled := w.ctl.Schedule()
	i := slices.IndexFunc(scheduled, func(s Scheduled) bool { return s.ServiceAccount == "payroll" })
	overdue := w.clock.Now().Round(0).Sub(scheduled[i].NextRenewal).Seconds()
	if overdue < 5*3600 || overdue > 20*3600 {
		t.Errorf("overdue for %g seconds", overdue)
	}
	if err := testutil.CollectAndCompare(collector{w.ctl}, strings.NewReader(series(4, 0, 2, 1, 1, 1, 1, overdue, last()))); err != nil {
		t.Error(err)
	}
}

func TestARevokedIdentityHasNoSecretAndARevokedCertificateIsReplaced(t *testing.T) {
	var mu sync.Mutex
	revoked := map[string]bool{}
	revoke := func(what string, is bool) {
		mu.Lock()
		defer mu.Unlock()
		revoked[what] = is
	}
	w := newWorldOf(t, func(c *Config) {
		c.Denies = func(identity, serial string) bool {
			mu.Lock()
			defer mu.Unlock()
			return revoked[identity] || revoked[identity+"#"+serial]
		}
	})
	const id = "spiffe://cluster.local/ns/finance/sa/payroll"
	w.addAccounts("finance", 1)
	w.settled(2)
	pair, _ := readPair(w.get("finance", "payroll"))
	revoke(id+"#"+pair.Leaf.SerialNumber.Text(16), true)
	w.advance(time.Minute)
	eventually(t, "another certificate", func() bool { return w.count(Revoked) == 1 && w.good("finance", "payroll", "u1") })
	revoke(id, true)
	w.advance(time.Minute)
	eventually(t, "no Secret", func() bool { return w.get("finance", "payroll") == nil })
	w.settled(1) // the other account's; the revoked one is waited for by nobody
	revoke(id, false)
	w.advance(time.Minute)
	eventually(t, "a Secret again", func() bool { return w.good("finance", "payroll", "u1") })
	w.settled(2)
}
