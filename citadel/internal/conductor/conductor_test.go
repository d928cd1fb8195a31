package conductor

import (
	"context"
	"crypto"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"io"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/citadel/internal/store"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var config = rotate.Config{TrustDomain: "cluster.local", KeyType: ca.P256, RootTTL: 1000 * time.Hour}

// replica is a Citadel that can lead, with a view of a mesh of its own.
type replica struct {
	*Conductor
	mu     sync.Mutex
	holder rotate.Holder
	heard  chan struct{}
}

func newReplica(t *testing.T, client *fake.Clientset) *replica {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	origins := &origin.Origins{Client: client, Rotation: config, Clock: clock.RealClock{}}
	vault := store.New(client, config, clock.RealClock{}, origins.First, prometheus.NewRegistry(), log)
	if err := vault.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := &replica{heard: make(chan struct{})}
	r.Conductor = &Conductor{Store: vault, Origins: origins, Config: config, Clock: clock.RealClock{}, Log: log,
		Heard: func() <-chan struct{} {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.heard
		},
		Observe: func() rotate.Observation {
			r.mu.Lock()
			defer r.mu.Unlock()
			return rotate.Observation{Holders: []rotate.Holder{r.holder}}
		}}
	return r
}

// says makes the one member of the mesh hold something.
func (r *replica) says(sequence uint64, issuer []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holder = rotate.Holder{Component: "agent", Pod: "a", Heard: true, Sequence: sequence, ProxiesSequence: sequence, Issuers: map[string]uint32{hex.EncodeToString(issuer): 3}}
	close(r.heard)
	r.heard = make(chan struct{})
}

func (r *replica) signer() []byte {
	return r.Store.Keeper().Current().Signer.Certificate().SubjectKeyId
}

// leads runs the replica until the function it returns is called.
func leads(r *replica) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Store.Run(ctx) })
	wg.Go(func() { r.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 seconds: %s", what)
		}
	}
}

func in(r *replica, phase rotate.Phase) func() bool {
	return func() bool { return r.Store.CA().Rotation.Phase == phase }
}

func TestRotationGoesOnOnlyWhenTheMeshHasSaidSo(t *testing.T) {
	r := newReplica(t, fake.NewClientset())
	old := r.signer()
	r.says(1, old)
	defer leads(r)()
	next, err := r.Origins.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), next, "a test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says whom it waits for", func() bool { return len(r.Waits()) == 1 && strings.Contains(r.Waits()[0].For, "agent a") })
	if !in(r, rotate.Publishing)() || string(r.signer()) != string(old) {
		t.Fatal("the new root signs before everyone has it")
	}
	r.says(2, old)
	eventually(t, "the new root signs", in(r, rotate.Signing))
	eventually(t, "it waits for the old certificates", func() bool { return len(r.Waits()) == 1 && strings.Contains(r.Waits()[0].What, "another signer") })
	r.says(2, r.signer())
	eventually(t, "the old root is withdrawn", in(r, rotate.Retiring))
	r.says(3, r.signer())
	eventually(t, "it is over", in(r, rotate.Idle))
	if string(r.signer()) == string(old) || len(r.Store.Keeper().Current().Roots) != 1 {
		t.Fatal("the old root is still there")
	}
}

// Replicas that lead in turn and are stopped at any moment bring a rotation to its end, and the mesh never sees a signer
// whose root it does not hold.
func TestRotationSurvivesAnyNumberOfLeaders(t *testing.T) {
	client := fake.NewClientset()
	random := rand.New(rand.NewPCG(7, 7))
	first := newReplica(t, client)
	old := first.signer()
	next, err := first.Origins.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(t.Context(), next, "a test"); err != nil {
		t.Fatal(err)
	}
	holds, shows := uint64(1), old
	for leader := 0; ; leader++ {
		if leader > 200 {
			t.Fatal("not over after two hundred leaders")
		}
		r := newReplica(t, client)
		stop := leads(r)
		for range random.IntN(4) {
			state := r.Store.Keeper().Current()
			if random.IntN(2) == 0 {
				holds = state.Sequence
			} else {
				shows = r.signer()
			}
			r.says(holds, shows)
			time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond) // where it is killed is left to chance
		}
		stop()
		if newReplica(t, client).Store.CA().Rotation.Phase == rotate.Idle {
			break
		}
	}
	last := newReplica(t, client)
	if string(last.signer()) == string(old) || len(last.Store.Keeper().Current().Roots) != 1 {
		t.Fatal("the rotation ended with the old root")
	}
}

// watches counts what is watched: a fake client does not tell of what happens between a list and its watch.
func watches(client *fake.Clientset) (n int) {
	for _, a := range client.Actions() {
		if a.GetVerb() == "watch" {
			n++
		}
	}
	return n
}

func TestPluggedInCAIsRotatedTo(t *testing.T) {
	client := fake.NewClientset()
	r := newReplica(t, client)
	r.says(1, r.signer())
	defer leads(r)()
	eventually(t, "both Secrets are watched", func() bool { return watches(client) == 2 })
	m, err := ca.NewRoot("cluster.local", ca.P384, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	data := map[string][]byte{mesh.CACertKey: m.Cert, mesh.CAKeyKey: m.Key, mesh.CertChainKey: m.Chain, mesh.RootCertKey: m.Root}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.PluggedCASecret, Namespace: mesh.Namespace}, Data: map[string][]byte{mesh.CACertKey: m.Cert}}
	if secret, err = client.CoreV1().Secrets(mesh.Namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a CA without its key is named as the trouble", func() bool {
		what, is := r.Trouble()
		return is && strings.Contains(what, mesh.PluggedCASecret)
	})
	if !in(r, rotate.Idle)() {
		t.Fatal("a rotation to a CA without a key has begun")
	}
	secret.Data = data
	if _, err := client.CoreV1().Secrets(mesh.Namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both roots are published", in(r, rotate.Publishing))
	r.says(2, r.signer())
	eventually(t, "the plugged-in CA signs", func() bool { return r.Store.CA().Current.Origin == rotate.PluggedIn })
	reads := 0
	for _, a := range client.Actions() {
		if get, ok := a.(clienttesting.GetAction); ok && get.GetVerb() == "get" && get.GetName() == mesh.PluggedCASecret {
			reads++
		}
	}
	if reads != 1 {
		t.Errorf("Secret %s was read %d times, want once, at the start: it is watched", mesh.PluggedCASecret, reads)
	}
	if _, err := r.Origins.Next(t.Context()); err == nil || !strings.Contains(err.Error(), "replace it") {
		t.Errorf("a rotation away from a plugged-in CA: %v", err)
	}
}

// A signing certificate that is renewed under the same root needs nobody to hold anything new.
func TestRenewedIntermediateSignsAtOnce(t *testing.T) {
	root, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := signing("root")
	template.MaxPathLen, template.MaxPathLenZero = 1, false
	rootCert := signedBy(t, template, template, root.Public(), root)
	intermediate := func(name string) map[string][]byte {
		key, err := ca.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		cert := ca.EncodeCerts([]*x509.Certificate{signedBy(t, signing(name), rootCert, key.Public(), root)})
		keyPEM, err := ca.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{mesh.CACertKey: cert, mesh.CAKeyKey: keyPEM, mesh.CertChainKey: cert, mesh.RootCertKey: ca.EncodeCerts([]*x509.Certificate{rootCert})}
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.PluggedCASecret, Namespace: mesh.Namespace}, Data: intermediate("first")}
	client := fake.NewClientset(secret)
	r := newReplica(t, client)
	before, old := r.Store.CA(), r.signer()
	r.says(1, old) // and never anything else
	defer leads(r)()
	eventually(t, "both Secrets are watched", func() bool { return watches(client) == 2 })
	secret.Data = intermediate("second")
	if _, err := client.CoreV1().Secrets(mesh.Namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new one signs", func() bool { return string(r.signer()) != string(old) })
	// Each phase of a rotation would be stored, and publishing a root would make another bundle.
	after, state := r.Store.CA(), r.Store.Keeper().Current()
	if after.Rotation.Phase != rotate.Idle || !after.Rotation.Started.IsZero() || after.Sequence != before.Sequence || state.Sequence != before.Sequence || after.Previous != nil {
		t.Errorf("a rotation began: %+v, bundle %d after %d", after.Rotation, after.Sequence, before.Sequence)
	}
	if len(state.Roots) != 1 || !state.Roots[0].Equal(rootCert) || !strings.Contains(after.Rotation.Last, "under the same root") {
		t.Errorf("%d roots; %q", len(state.Roots), after.Rotation.Last)
	}
	id, err := spiffe.New("cluster.local", "finance", "payroll")
	if err != nil {
		t.Fatal(err)
	}
	if chain, err := state.Signer.Issue(ca.Request{ID: id, PublicKey: root.Public(), TTL: time.Minute}); err != nil || len(chain) != 2 || chain[1].Subject.CommonName != "second" {
		t.Errorf("chain of %d, %v", len(chain), err)
	}
}

// signing is a CA certificate as operators make it.
func signing(name string) *x509.Certificate {
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	ca.Constrain(c, "cluster.local")
	return c
}

func signedBy(t *testing.T, template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(cryptorand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMeshThatBeginsWithAPluggedInCANeverHasAnother(t *testing.T) {
	m, err := ca.NewRoot("cluster.local", ca.RSA, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.PluggedCASecret, Namespace: mesh.Namespace},
		Data: map[string][]byte{mesh.CACertKey: m.Cert, mesh.CAKeyKey: m.Key, mesh.CertChainKey: m.Chain, mesh.RootCertKey: m.Root}})
	r := newReplica(t, client)
	if got := r.Store.CA(); got.Current.Origin != rotate.PluggedIn || string(got.Current.Material.Root) != string(m.Root) {
		t.Fatalf("began with %s", got.Current.Origin)
	}
}
