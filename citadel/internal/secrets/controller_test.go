package secrets

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

type world struct {
	t         *testing.T
	client    *fake.Clientset
	clock     *testclock.FakeClock
	authority *ca.Keeper
	ctl       *Controller
	events    *events.FakeRecorder
	stop      func()
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func account(ns, name, uid string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid)}}
}

func newWorld(t *testing.T) *world { return newWorldOf(t, func(*Config) {}) }

func newWorldOf(t *testing.T, change func(*Config)) *world {
	t.Helper()
	clock := testclock.NewFakeClock(time.Now())
	config := dayLong
	change(&config)
	authority := ca.NewKeeper(newState(t, clock))
	w := &world{t: t, clock: clock, authority: authority, events: events.NewFakeRecorder(100),
		client: fake.NewClientset(namespace("finance", nil), namespace("quiet", map[string]string{mesh.SecretsLabel: "disabled"}),
			account("finance", "payroll", "u1"), account("quiet", "default", "u2"))}
	w.ctl = New(w.client, authority, config, clock, w.events,
		prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	w.ctl.retry = time.Millisecond
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.ctl.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		w.stop = func() {}
	}
}

func (w *world) get(ns, account string) *corev1.Secret {
	w.t.Helper()
	s, err := w.client.CoreV1().Secrets(ns).Get(context.Background(), mesh.SecretName(account), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 15 seconds: %s", what)
}

// good says whether the account has a Secret that is as it should be.
func (w *world) good(ns, name, uid string) bool {
	s := w.get(ns, name)
	if s == nil {
		return false
	}
	_, wrong := inspect(s, account(ns, name, uid), view{State: w.authority.Current()}, w.ctl.config, w.clock.Now())
	return wrong == "" && s.Type == mesh.SecretType
}

func built(sa *corev1.ServiceAccount, state *ca.State, c Config) (*corev1.Secret, error) {
	id, err := spiffe.New(c.TrustDomain, sa.Namespace, sa.Name)
	if err != nil {
		return nil, err
	}
	s, _, err := build(sa, id, state, c)
	return s, err
}

func (w *world) update(s *corev1.Secret) {
	w.t.Helper()
	if _, err := w.client.CoreV1().Secrets(s.Namespace).Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func serial(t *testing.T, s *corev1.Secret) string {
	t.Helper()
	pair, err := tls.X509KeyPair(s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey])
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf.SerialNumber.String()
}

func TestEveryAccountHasASecretExistingAndNew(t *testing.T) {
	w := newWorld(t)
	eventually(t, "Secret of an existing account", func() bool { return w.good("finance", "payroll", "u1") })
	ctx := context.Background()
	if _, err := w.client.CoreV1().Namespaces().Create(ctx, namespace("new", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := w.client.CoreV1().ServiceAccounts("new").Create(ctx, account("new", fmt.Sprint("a", i), fmt.Sprint("n", i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		eventually(t, "Secret of a new account", func() bool { return w.good("new", fmt.Sprint("a", i), fmt.Sprint("n", i)) })
	}
	if w.get("quiet", "default") != nil {
		t.Fatal("a namespace that opted out has a Secret")
	}
}

func TestDeletedAndDamagedSecretsAreRestored(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	other, err := built(account("finance", "admin", "u9"), w.authority.Current(), w.ctl.config)
	if err != nil {
		t.Fatal(err)
	}
	foreignRoot, err := ca.NewRoot("cluster.local", ca.P256, w.clock.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreignCA, err := ca.New(foreignRoot, w.clock)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := built(account("finance", "payroll", "u1"), catest.State(foreignCA, nil), w.ctl.config)
	if err != nil {
		t.Fatal(err)
	}
	damages := []struct {
		what   string
		reason Reason
		spoil  func(*corev1.Secret)
	}{
		{"emptied", Corrupt, func(s *corev1.Secret) { s.Data = nil }},
		{"without its key", Corrupt, func(s *corev1.Secret) { delete(s.Data, mesh.PrivateKeyKey) }},
		{"with rubbish for a certificate", Corrupt, func(s *corev1.Secret) { s.Data[mesh.CertChainKey] = []byte("rubbish") }},
		{"with another account's key", KeyMismatch, func(s *corev1.Secret) { s.Data[mesh.PrivateKeyKey] = other.Data[mesh.PrivateKeyKey] }},
		{"with another identity", WrongIdentity, func(s *corev1.Secret) { s.Data = other.Data }},
		{"with a certificate of another CA", Untrusted, func(s *corev1.Secret) {
			s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey] = foreign.Data[mesh.CertChainKey], foreign.Data[mesh.PrivateKeyKey]
		}},
		{"with another bundle", BundleChanged, func(s *corev1.Secret) { s.Data[mesh.RootCertKey] = foreign.Data[mesh.RootCertKey] }},
		{"with an entry too many", Edited, func(s *corev1.Secret) { s.Data["extra"] = []byte("x") }},
		{"without its owner", Edited, func(s *corev1.Secret) { s.OwnerReferences = nil }},
		{"without its label", Edited, func(s *corev1.Secret) { s.Labels = nil }},
		{"expired", Expired, func(*corev1.Secret) { w.clock.Step(25 * time.Hour) }},
		{"not valid yet", NotYetValid, func(*corev1.Secret) { w.clock.Step(-25 * time.Hour) }},
	}
	for _, d := range damages {
		w.settled(1)
		w.told(d.reason)
		before := testutil.ToFloat64(w.ctl.written.WithLabelValues(string(d.reason)))
		s := w.get("finance", "payroll").DeepCopy()
		d.spoil(s)
		if d.reason != Expired { // whose time is noticed by itself; with an update there would be two repairs, the second at any moment
			w.update(s)
		}
		eventually(t, "restored after it was "+d.what, func() bool { return w.good("finance", "payroll", "u1") })
		eventually(t, fmt.Sprintf("%s is counted after it was %s", d.reason, d.what), func() bool {
			return testutil.ToFloat64(w.ctl.written.WithLabelValues(string(d.reason))) > before
		})
		if d.reason.repair() {
			eventually(t, fmt.Sprintf("an Event says %s after it was %s", d.reason, d.what), func() bool { return w.told(d.reason) })
		}
	}
	w.settled(1)
	if err := w.client.CoreV1().Secrets("finance").Delete(context.Background(), "bulwark.payroll", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "restored after it was deleted", func() bool { return w.good("finance", "payroll", "u1") })
	eventually(t, "an Event says that it was deleted", func() bool { return w.told(Deleted) })
}

// told takes the Events that there are, and says whether one has the reason.
func (w *world) told(reason Reason) bool {
	found := false
	for {
		select {
		case e := <-w.events.Events:
			found = found || strings.Contains(e, "Warning Secret"+string(reason)+" ")
		default:
			return found
		}
	}
}

func TestWhatOthersPutOnASecretStays(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	s := w.get("finance", "payroll").DeepCopy()
	s.Annotations = map[string]string{"team": "a"}
	s.Data = nil
	w.update(s)
	eventually(t, "restored", func() bool { return w.good("finance", "payroll", "u1") })
	if got := w.get("finance", "payroll").Annotations["team"]; got != "a" {
		t.Fatalf("annotation is %q", got)
	}
}

func TestSecretsAreRenewedAroundHalfOfTheirLife(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	first := serial(t, w.get("finance", "payroll"))
	w.advance(9 * time.Hour)
	if serial(t, w.get("finance", "payroll")) != first {
		t.Fatal("renewed after 9 of 24 hours")
	}
	w.advance(6 * time.Hour)
	eventually(t, "renewed after 15 of 24 hours", func() bool { return serial(t, w.get("finance", "payroll")) != first })
	eventually(t, "valid", func() bool { return w.good("finance", "payroll", "u1") })
	eventually(t, "counted", func() bool { return testutil.ToFloat64(w.ctl.written.WithLabelValues(string(Renewed))) == 1 })
}

// The cache may show what was replaced for some time. It must not be replaced again: the write would fail, and a
// certificate would have been issued for nothing.
func TestWhatTheCacheStillShowsIsNotReplacedAgain(t *testing.T) {
	w := newWorld(t)
	w.settled(1)
	s, k := w.ctl.running.Load(), key{Namespace: "finance", Name: "payroll"}
	before, err := s.secrets.Secrets("finance").Get("bulwark.payroll")
	if err != nil {
		t.Fatal(err)
	}
	w.stop() // nor does the cache change any more
	first, stale := w.get("finance", "payroll"), before.DeepCopy()
	delete(stale.Data, mesh.PrivateKeyKey)
	for range 3 {
		if _, err := s.keep(context.Background(), k, account("finance", "payroll", "u1"), stale); err != nil {
			t.Fatal(err)
		}
	}
	if n := testutil.ToFloat64(w.ctl.written.WithLabelValues(string(Corrupt))); n != 1 || serial(t, w.get("finance", "payroll")) == serial(t, first) {
		t.Fatalf("written %v times", n)
	}
}

// A watch that is resumed against a restored etcd, or a partial answer to a list, may take objects out of the cache that are
// there still.
func TestACacheThatShrankTakesNoSecretAway(t *testing.T) {
	for resource, there := range map[string]runtime.Object{"namespaces": namespace("finance", nil), "serviceaccounts": account("finance", "payroll", "u1")} {
		t.Run(resource, func(t *testing.T) {
			w := newWorld(t)
			w.settled(1)
			first, k := serial(t, w.get("finance", "payroll")), key{Namespace: "finance", Name: "payroll"}
			w.client.PrependReactor("get", resource, func(clienttesting.Action) (bool, runtime.Object, error) { return true, there, nil })
			gone := k
			if resource == "namespaces" {
				gone = key{Name: "finance"}
			}
			if err := w.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource(resource), gone.Namespace, gone.Name); err != nil {
				t.Fatal(err)
			}
			s := w.ctl.running.Load()
			s.ask(k, look) // a namespace that goes has its accounts looked at only if they are there
			eventually(t, "the account is reported", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return strings.Contains(s.failed[k], "not known to be gone")
			})
			if s := w.get("finance", "payroll"); s == nil || serial(t, s) != first {
				t.Fatal("the Secret of a live account was removed or written anew")
			}
		})
	}
}

// advance moves the wall clock and lets the controller look at it.
func (w *world) advance(d time.Duration) {
	w.t.Helper()
	eventually(w.t, "the controller watches the clock", w.clock.HasWaiters)
	w.clock.Step(d)
}

func TestSecretGoesWithItsAccountAndComesBackWithANewOne(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	ctx := context.Background()
	if err := w.client.CoreV1().ServiceAccounts("finance").Delete(ctx, "payroll", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", func() bool { return w.get("finance", "payroll") == nil })
	if _, err := w.client.CoreV1().ServiceAccounts("finance").Create(ctx, account("finance", "payroll", "u7"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "back, with the new owner", func() bool { return w.good("finance", "payroll", "u7") })
}

func TestNamespaceOptsOutAndBackIn(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	for _, step := range []struct {
		label string
		want  bool
	}{{"disabled", false}, {"", true}} {
		ns := namespace("finance", map[string]string{mesh.SecretsLabel: step.label})
		if _, err := w.client.CoreV1().Namespaces().Update(context.Background(), ns, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("label %q", step.label), func() bool { return (w.get("finance", "payroll") != nil) == step.want })
	}
}

func TestForeignSecretOfTheSameNameIsLeftAloneAndReported(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "finance", Name: "bulwark.web"}, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"mine": []byte("x")}}
	if _, err := w.client.CoreV1().Secrets("finance").Create(ctx, foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.CoreV1().ServiceAccounts("finance").Create(ctx, account("finance", "web", "u5"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-w.events.Events:
		if !strings.Contains(e, "SecretNameTaken") {
			t.Fatalf("event %q", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	if s := w.get("finance", "web"); string(s.Data["mine"]) != "x" {
		t.Fatal("the foreign Secret was changed")
	}
	eventually(t, "metric", func() bool { return w.ctl.Progress().Foreign == 1 })
	if err := w.client.CoreV1().Secrets("finance").Delete(ctx, "bulwark.web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.advance(2 * time.Minute)
	eventually(t, "its own, once the name is free", func() bool { return w.good("finance", "web", "u5") })
}

// A replica that wins the Lease anew finds what happened meanwhile.
func TestRunsAgainAfterItStopped(t *testing.T) {
	w := newWorld(t)
	eventually(t, "the first", func() bool { return w.good("finance", "payroll", "u1") })
	w.stop()
	if err := w.client.CoreV1().Secrets("finance").Delete(context.Background(), "bulwark.payroll", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.start()
	eventually(t, "restored", func() bool { return w.good("finance", "payroll", "u1") })
}

func TestTheMinimumIsLeftWhenACertificateIsRenewed(t *testing.T) {
	w := newWorld(t)
	for minimum, want := range map[time.Duration]time.Duration{0: 2 * time.Minute, 8 * time.Hour: 8 * time.Hour} {
		config, early := w.ctl.config, false
		config.Fraction, config.Jitter, config.Minimum = 0.8, 0.1, minimum
		for range 60 {
			s, err := built(account("finance", "payroll", "u1"), w.authority.Current(), config)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey])
			if err != nil {
				t.Fatal(err)
			}
			left := pair.Leaf.NotAfter.Sub(dueAt(pair.Leaf, config))
			if left < want {
				t.Fatalf("with a minimum of %s, %s are left", minimum, left)
			}
			early = early || left > want+time.Hour
		}
		if !early {
			t.Errorf("with a minimum of %s, all are renewed at once", minimum)
		}
	}
}

func TestRenewalsAreSpread(t *testing.T) {
	w := newWorld(t)
	issued := w.clock.Now()
	var early, late int
	for range 60 {
		s, err := built(account("finance", "payroll", "u1"), w.authority.Current(), w.ctl.config)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey])
		if err != nil {
			t.Fatal(err)
		}
		after := dueAt(pair.Leaf, w.ctl.config).Sub(issued)
		if after < 9*time.Hour || after > 15*time.Hour {
			t.Fatalf("due after %s", after)
		}
		if after < 12*time.Hour {
			early++
		} else {
			late++
		}
	}
	if early < 10 || late < 10 {
		t.Fatalf("%d early, %d late", early, late)
	}
}
