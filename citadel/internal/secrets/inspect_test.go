package secrets

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var dayLong = Config{TrustDomain: "cluster.local", TTL: 24 * time.Hour, Fraction: 0.5, Jitter: 0.1}

func newState(t testing.TB, clock *testclock.FakeClock, before ...*ca.State) *ca.State {
	t.Helper()
	m, err := ca.NewRoot("cluster.local", ca.P256, clock.Now(), 10000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ca.New(m, clock)
	if err != nil {
		t.Fatal(err)
	}
	state := catest.State(signer, nil)
	for _, b := range before {
		state.Roots = append(state.Roots, b.Roots...)
		state.RootsPEM = append(state.RootsPEM, b.RootsPEM...)
	}
	return state
}

// newSigner returns the state after a root rotation's second step: another signs, and both are trusted.
func newSigner(t testing.TB, clock *testclock.FakeClock, old *ca.State, within time.Duration) *ca.State {
	state := *newState(t, clock, old)
	state.RenewWithin = within
	return &state
}

func mustBuild(t *testing.T, sa *corev1.ServiceAccount, state *ca.State, c Config) *corev1.Secret {
	t.Helper()
	s, err := built(sa, state, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEachFaultOfASecretHasItsReason(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	state := newState(t, clock)
	sa := account("finance", "payroll", "u1")
	other := mustBuild(t, account("finance", "admin", "u9"), state, dayLong)
	twin := mustBuild(t, sa, state, dayLong)
	stranger := mustBuild(t, sa, newState(t, clock), dayLong)
	domain := dayLong
	domain.TrustDomain = "other.domain"
	abroad := mustBuild(t, sa, state, domain)

	for _, c := range []struct {
		name  string
		spoil func(*corev1.Secret)
		after time.Duration
		state *ca.State
		want  Reason
	}{
		{name: "nothing"},
		{name: "annotations and labels of others", spoil: func(s *corev1.Secret) {
			s.Annotations, s.Labels["team"] = map[string]string{"a": "b"}, "x"
		}},
		{name: "emptied", spoil: func(s *corev1.Secret) { s.Data = nil }, want: Corrupt},
		{name: "without its key", spoil: func(s *corev1.Secret) { delete(s.Data, mesh.PrivateKeyKey) }, want: Corrupt},
		{name: "truncated", spoil: func(s *corev1.Secret) { s.Data[mesh.CertChainKey] = s.Data[mesh.CertChainKey][:200] }, want: Corrupt},
		{name: "another key", spoil: func(s *corev1.Secret) { s.Data[mesh.PrivateKeyKey] = twin.Data[mesh.PrivateKeyKey] }, want: KeyMismatch},
		{name: "another account's", spoil: func(s *corev1.Secret) { s.Data = other.Data }, want: WrongIdentity},
		{name: "another trust domain's", spoil: func(s *corev1.Secret) { s.Data = abroad.Data }, want: WrongIdentity},
		{name: "another CA's", spoil: func(s *corev1.Secret) { s.Data = stranger.Data }, want: Untrusted},
		{name: "an old root's", state: newState(t, clock), want: Untrusted},
		{name: "expired", after: 25 * time.Hour, want: Expired},
		{name: "not yet valid", after: -time.Hour, want: NotYetValid},
		{name: "without its owner", spoil: func(s *corev1.Secret) { s.OwnerReferences = nil }, want: Edited},
		{name: "another owner", spoil: func(s *corev1.Secret) {
			s.OwnerReferences = append(s.OwnerReferences, metav1.OwnerReference{Kind: "Pod"})
		}, want: Edited},
		{name: "without its label", spoil: func(s *corev1.Secret) { s.Labels = nil }, want: Edited},
		{name: "an entry too many", spoil: func(s *corev1.Secret) { s.Data["extra"] = []byte("x") }, want: Edited},
		{name: "another bundle", spoil: func(s *corev1.Secret) { s.Data[mesh.RootCertKey] = stranger.Data[mesh.RootCertKey] }, want: BundleChanged},
		{name: "due", after: 15 * time.Hour, want: Renewed},
		{name: "an earlier signer's", state: newSigner(t, clock, state, 0), want: SignerChanged},
		{name: "an earlier signer's, with time", state: newSigner(t, clock, state, 23*time.Hour), want: BundleChanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustBuild(t, sa, state, dayLong)
			if c.spoil != nil {
				c.spoil(s)
			}
			v := view{State: state, since: clock.Now()}
			if c.state != nil {
				v.State = c.state
			}
			if c.name == "an earlier signer's, with time" {
				pair, _ := readPair(s)
				v.since = slot(pair.Leaf, clock.Now(), v.RenewWithin).Add(-time.Hour) // whichever its place in the period is
			}
			_, got := inspect(s, sa, v, dayLong, clock.Now().Add(c.after))
			if got != c.want {
				t.Fatalf("reason %q, want %q", got, c.want)
			}
			if faulty := c.want != "" && !c.want.routine(); faulty != c.want.repair() {
				t.Fatalf("%q: nothing is told of it", c.want)
			}
		})
	}
}

func TestCertificatesOfAnEarlierSignerAreReplacedWithinThePeriodHoweverOftenCitadelRestarts(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	state := newState(t, clock)
	const period = time.Hour
	var halves [2]int
	for range 50 {
		pair, _ := readPair(mustBuild(t, account("a", "b", "c"), state, dayLong))
		since := clock.Now()
		first := slot(pair.Leaf, since, period)
		if first.Before(since) || first.After(since.Add(period)) {
			t.Fatalf("%s after the change", first.Sub(since))
		}
		halves[int(2*first.Sub(since)/period)%2]++
		for restart := since; restart.Before(first); restart = restart.Add(7 * time.Minute) {
			if again := slot(pair.Leaf, restart, period); !again.Equal(first) {
				t.Fatalf("a restart moves the replacement from %s to %s", first, again)
			}
		}
	}
	if halves[0] < 10 || halves[1] < 10 {
		t.Fatalf("not spread: %v in the halves of the period", halves)
	}
}

func TestSettingsThatLeaveNoTimeAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // "" if it is fine
	}{
		{"the defaults", func(*Config) {}, ""},
		{"no jitter", func(c *Config) { c.Jitter = 0 }, ""},
		{"the latest", func(c *Config) { c.Fraction, c.Jitter = 0.8, 0.1 }, ""},
		{"a short life", func(c *Config) { c.TTL = 29 * time.Second }, "shorter than 30s"},
		{"early", func(c *Config) { c.Fraction = 0.1 }, "outside 0.2 to 0.8"},
		{"late", func(c *Config) { c.Fraction = 0.9 }, "outside 0.2 to 0.8"},
		{"negative jitter", func(c *Config) { c.Jitter = -0.1 }, "outside 0 to 0.2"},
		{"much jitter", func(c *Config) { c.Jitter = 0.3 }, "outside 0 to 0.2"},
		{"half is the minimum", func(c *Config) { c.Minimum = c.TTL / 2 }, ""},
		{"more than half is the minimum", func(c *Config) { c.Minimum = c.TTL/2 + 1 }, "minimum"},
		{"a negative minimum", func(c *Config) { c.Minimum = -1 }, "minimum"},
		{"late by jitter", func(c *Config) { c.Fraction, c.Jitter = 0.8, 0.2 }, "after 0.9"},
	} {
		config := dayLong
		c.change(&config)
		err := config.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Every kind of key that can be configured makes a Secret that is found good.
func TestEachKeyTypeMakesASoundSecret(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	state, sa := newState(t, clock), account("finance", "payroll", "u1")
	for _, kind := range []ca.KeyType{"", ca.P256, ca.P384, ca.RSA} {
		config := dayLong
		config.KeyType = kind
		if _, wrong := inspect(mustBuild(t, sa, state, config), sa, view{State: state}, config, clock.Now()); wrong != "" {
			t.Errorf("%q: %s", kind, wrong)
		}
	}
}
