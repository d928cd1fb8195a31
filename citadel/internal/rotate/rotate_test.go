package rotate

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func root(t testing.TB, after time.Duration) Signer {
	t.Helper()
	m, err := ca.NewRoot("cluster.local", ca.P256, start.Add(after), 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{Material: m, Origin: SelfSigned}
}

func (c CA) rootsPEM(t testing.TB) string {
	t.Helper()
	roots, err := c.Roots()
	if err != nil {
		t.Fatal(err)
	}
	return string(ca.EncodeCerts(roots))
}

func must(t testing.TB) func(CA, error) CA {
	return func(c CA, err error) CA {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// What each phase signs with and publishes, from beginning to end.
func TestRotationPublishesBeforeItSignsAndRetiresLast(t *testing.T) {
	old, next := root(t, 0), root(t, time.Hour)
	a, b := string(old.Material.Root), string(next.Material.Root)
	c := CA{Current: old, Sequence: 1}
	for _, step := range []struct {
		phase    Phase
		signs    Signer
		bundle   string
		sequence uint64
	}{{Publishing, old, a + b, 2}, {Signing, next, a + b, 2}, {Retiring, next, b, 3}, {Idle, next, b, 3}} {
		if step.phase == Publishing {
			c = must(t)(Begin(c, next, "a test", start))
		} else {
			c = must(t)(Advance(c, start))
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if c.Rotation.Phase != step.phase || !bytes.Equal(c.Current.Material.Key, step.signs.Material.Key) || c.rootsPEM(t) != step.bundle || c.Sequence != step.sequence {
			t.Errorf("phase %q (want %q): bundle %d of %d bytes (want %d of %d)", c.Rotation.Phase, step.phase, c.Sequence, len(c.rootsPEM(t)), step.sequence, len(step.bundle))
		}
	}
	if c.Previous != nil || c.Next != nil || c.Rotation.Last != "completed: a test" {
		t.Errorf("something is left over: %+v", c.Rotation)
	}
}

func TestAbortGoesBackWithoutLeavingACertificateBehind(t *testing.T) {
	old, next := root(t, 0), root(t, time.Hour)
	a, b := string(old.Material.Root), string(next.Material.Root)
	begun := must(t)(Begin(CA{Current: old, Sequence: 1}, next, "x", start))

	published := must(t)(Abort(begun, start))
	if published.Rotation.Phase != Idle || published.rootsPEM(t) != a || published.Sequence != 3 || published.Next != nil {
		t.Errorf("while publishing: %+v", published.Rotation)
	}

	signing := must(t)(Advance(begun, start))
	back := must(t)(Abort(signing, start))
	if !bytes.Equal(back.Current.Material.Key, old.Material.Key) || back.rootsPEM(t) != a+b || back.Rotation.Phase != Signing {
		t.Errorf("while signing: the old key is to sign, and both roots stay until what the new one signed is renewed: %+v", back.Rotation)
	}
	done := must(t)(Advance(must(t)(Advance(back, start)), start))
	if done.rootsPEM(t) != a || done.Rotation.Last != "aborted: x" {
		t.Errorf("at the end of an abort: %+v", done.Rotation)
	}

	if _, err := Abort(must(t)(Advance(signing, start)), start); err == nil {
		t.Error("a rotation was aborted whose old root is withdrawn")
	}
	if _, err := Abort(back, start); err == nil {
		t.Error("an abort was aborted")
	}
}

func TestRenewedIntermediateNeedsNoRotation(t *testing.T) {
	old := root(t, 0)
	renewed := old
	renewed.Material.Chain = nil
	c := must(t)(Begin(CA{Current: old, Sequence: 4}, renewed, "half of its life", start))
	if c.Rotation.Phase != Idle || c.Sequence != 4 || c.Current.Material.Chain != nil {
		t.Errorf("%+v", c.Rotation)
	}
}

func TestOneRotationAtATime(t *testing.T) {
	c := must(t)(Begin(CA{Current: root(t, 0)}, root(t, time.Hour), "x", start))
	if _, err := Begin(c, root(t, 2*time.Hour), "y", start); err != ErrUnderWay {
		t.Errorf("%v", err)
	}
	for name, change := range map[string]func(CA) (CA, error){"pause": Pause, "resume": Resume, "force": Force, "abort": func(c CA) (CA, error) { return Abort(c, start) }} {
		if _, err := change(CA{}); err != ErrNone {
			t.Errorf("%s without a rotation: %v", name, err)
		}
	}
}

// everyone is a mesh that holds all that the phase brings.
func everyone(c CA, signer string) Observation {
	return Observation{Holders: []Holder{
		{Component: "agent", Pod: "a", Node: "n1", Heard: true, Sequence: c.Sequence, ProxiesSequence: c.Sequence, Issuers: map[string]uint32{signer: 7}},
		{Component: "pilot", Pod: "p", Heard: true, Sequence: c.Sequence, ProxiesSequence: c.Sequence, Issuers: map[string]uint32{signer: 1}},
	}}
}

func TestRotationWaitsForWhoeverIsBehind(t *testing.T) {
	signer := []byte{1, 2}
	id := hex.EncodeToString(signer)
	for name, c := range map[string]struct {
		spoil  func(*Observation)
		phases []Phase // that wait for it
		says   string
	}{
		"nobody":                     {func(*Observation) {}, nil, ""},
		"an agent without a word":    {func(o *Observation) { o.Holders[0] = Holder{Component: "agent", Pod: "a"} }, []Phase{Publishing, Signing, Retiring}, "has not said"},
		"an agent's own bundle":      {func(o *Observation) { o.Holders[0].Sequence-- }, []Phase{Publishing, Signing, Retiring}, "holds bundle"},
		"a proxy's bundle":           {func(o *Observation) { o.Holders[0].ProxiesSequence--; o.Holders[0].Behind = []string{"x/y"} }, []Phase{Publishing, Signing, Retiring}, "x/y"},
		"an old certificate":         {func(o *Observation) { o.Holders[1].Issuers["ff"] = 1 }, []Phase{Signing}, "certificates of another signer"},
		"a namespace":                {func(o *Observation) { o.BundlesBehind = 3 }, []Phase{Publishing, Signing, Retiring}, "3"},
		"a Secret's bundle":          {func(o *Observation) { o.SecretsBehind = 2 }, []Phase{Publishing, Signing, Retiring}, "2"},
		"a Secret's certificate":     {func(o *Observation) { o.SecretsOld = 5 }, []Phase{Signing}, "5"},
		"controllers at their start": {func(o *Observation) { o.Settling = true }, []Phase{Publishing, Signing, Retiring}, "not looked"},
		"kubelet, for Secrets":       {func(o *Observation) { o.MountsOfSecrets, o.SecretsWritten = 4, start.Add(-time.Minute) }, []Phase{Publishing, Signing, Retiring}, "4 pods within 1m0s"},
		"kubelet, for ConfigMaps":    {func(o *Observation) { o.MountsOfBundle, o.BundlesWritten = 1, start }, []Phase{Publishing, Signing, Retiring}, "within 2m0s"},
		"kubelet, long ago":          {func(o *Observation) { o.MountsOfSecrets, o.SecretsWritten = 4, start.Add(-2*time.Minute) }, nil, ""},
		"Secrets that nobody mounts": {func(o *Observation) { o.SecretsWritten = start }, nil, ""},
	} {
		for _, phase := range []Phase{Idle, Publishing, Signing, Retiring} {
			stored := CA{Sequence: 9, Rotation: Rotation{Phase: phase}}
			o := everyone(stored, id)
			c.spoil(&o)
			got := Waiting(stored, o, signer, 2*time.Minute, start)
			want := false
			for _, p := range c.phases {
				want = want || p == phase
			}
			if (len(got) > 0) != want {
				t.Errorf("%s in phase %q: waits %v", name, phase, got)
			}
			if want && !strings.Contains(fmt.Sprint(got), c.says) {
				t.Errorf("%s in phase %q: %v does not say %q", name, phase, got, c.says)
			}
		}
	}
}

func TestStepHeedsPauseAndForce(t *testing.T) {
	c := must(t)(Begin(CA{Current: root(t, 0)}, root(t, time.Hour), "x", start))
	waits := []Wait{{"agent a", "is behind"}}
	paused, forced := must(t)(Pause(c)), must(t)(Force(c))
	for name, try := range map[string]struct {
		c     CA
		waits []Wait
		moves bool
	}{"someone is behind": {c, waits, false}, "nobody is": {c, nil, true}, "paused": {paused, nil, false}, "forced": {forced, waits, true}, "no rotation": {CA{}, nil, false}} {
		next, moved, err := Step(try.c, try.waits, start)
		if err != nil || moved != try.moves {
			t.Errorf("%s: moved %v, %v", name, moved, err)
		}
		if next.Rotation.Forced && moved {
			t.Errorf("%s: the next phase is forced too", name)
		}
	}
}

// model is a mesh whose members take what is published, in any order and with any delay. A member verifies by the bundle
// it holds and shows the certificate it holds.
type model struct {
	bundle, issuer map[int]string
}

// Whatever happens between an operator, a slow mesh and the state machine: no two members ever refuse each other, except
// after an operator has forced a phase.
func TestNoTwoMembersEverRefuseEachOther(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		c := CA{Current: root(t, 0), Sequence: 1}
		m := model{map[int]string{}, map[int]string{}}
		for i := range 4 {
			m.bundle[i], m.issuer[i] = c.rootsPEM(t), string(c.Current.Material.Root)
		}
		sequence := map[int]uint64{0: 1, 1: 1, 2: 1, 3: 1}
		for step := range 120 {
			c = m.happen(t, random, c, sequence, step)
			for i := range 4 {
				for j := range 4 {
					if !strings.Contains(m.bundle[i], m.issuer[j]) {
						t.Fatalf("seed %d step %d, phase %q: member %d refuses the certificate of %d", seed, step, c.Rotation.Phase, i, j)
					}
				}
			}
		}
	}
}

func (m model) happen(t *testing.T, random *rand.Rand, c CA, sequence map[int]uint64, step int) CA {
	now := start.Add(time.Duration(step) * time.Minute)
	ignore := func(next CA, err error) CA {
		if err != nil {
			return c
		}
		return next
	}
	switch i := random.IntN(4); random.IntN(12) {
	case 0:
		if c.Rotation.Phase == Idle {
			return ignore(Begin(c, root(t, time.Duration(step)*time.Minute), "x", now))
		}
	case 1:
		if random.IntN(4) == 0 {
			return ignore(Abort(c, now))
		}
	case 2:
		return ignore(Pause(c))
	case 3:
		return ignore(Resume(c))
	case 4, 5, 6:
		m.bundle[i], sequence[i] = c.rootsPEM(t), c.Sequence
	case 7, 8, 9:
		m.issuer[i] = string(c.Current.Material.Root)
	default:
		var o Observation
		for i := range 4 {
			o.Holders = append(o.Holders, Holder{Heard: true, Sequence: sequence[i], ProxiesSequence: sequence[i], Issuers: map[string]uint32{hex.EncodeToString([]byte(m.issuer[i])): 1}})
		}
		next, _, err := Step(c, Waiting(c, o, []byte(c.Current.Material.Root), 0, now), now)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	return c
}

func TestTokenKeysOverlap(t *testing.T) {
	var keys []ca.TokenKey
	made := 0
	fresh := func(now time.Time) (ca.TokenKey, error) {
		made++
		return ca.TokenKey{ID: fmt.Sprint(made), Created: now}, nil
	}
	published := map[string]time.Time{} // since when
	lastSigned := map[string]time.Time{}
	for minute := range 5 * 24 * 60 {
		now := start.Add(time.Duration(minute) * time.Minute)
		var err error
		if keys, _, err = RotateTokens(keys, now, fresh); err != nil {
			t.Fatal(err)
		}
		at := TokenKeysAt(keys, now)
		there := map[string]bool{}
		for _, k := range at.Published {
			there[k.ID] = true
			if _, ok := published[k.ID]; !ok {
				published[k.ID] = now
			}
		}
		if minute > 0 && now.Sub(published[at.Signer.ID]) < time.Hour && at.Signer.ID != "1" {
			t.Fatalf("key %s signs after %s", at.Signer.ID, now.Sub(published[at.Signer.ID]))
		}
		lastSigned[at.Signer.ID] = now
		for id, when := range lastSigned {
			if !there[id] && now.Sub(when) < 90*time.Minute {
				t.Fatalf("key %s was withdrawn %s after it last signed", id, now.Sub(when))
			}
		}
		if len(keys) > 2 {
			t.Fatalf("%d keys at once", len(keys))
		}
	}
	if made != 5 {
		t.Errorf("%d keys in five days", made)
	}
}

// A root of another trust domain, by its name constraints, cannot serve this one.
func TestUsableCAMustAdmitTheTrustDomain(t *testing.T) {
	clk := testclock.NewFakePassiveClock(start.Add(time.Minute))
	m, err := ca.NewRoot("cluster.local", ca.P256, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Usable(m, "cluster.local", clk); err != nil {
		t.Error(err)
	}
	if _, err := Usable(m, "elsewhere.example", clk); err == nil || !strings.Contains(err.Error(), "elsewhere.example") {
		t.Errorf("%v", err)
	}
}
