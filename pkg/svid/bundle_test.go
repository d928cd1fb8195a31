package svid

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

var td = spiffeid.RequireTrustDomainFromString("cluster.local")

func newBundle(t *testing.T) (*Bundle, *testclock.FakeClock) {
	t.Helper()
	b, err := NewBundle("cluster.local", mesh.Namespace, fake.NewClientset(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	c := testclock.NewFakeClock(time.Now())
	b.clock = c
	return b, c
}

func (b *Bundle) sequence() uint64 {
	if t, _, err := b.Current(); err == nil {
		return t.Sequence
	}
	return 0
}

func (b *Bundle) trusts(c *x509.Certificate) bool {
	t, _, err := b.Current()
	return err == nil && t.X509.HasX509Authority(c)
}

func TestBundleWaitsForTheConfigMap(t *testing.T) {
	ca, client := svidtest.New(t, "cluster.local"), fake.NewClientset()
	b, _ := newBundle(t)
	b.client = client
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = b.Run(ctx) })
	// A fake client does not tell of what happens between a list and its watch.
	watches := func(a clienttesting.Action) bool { return a.GetVerb() == "watch" }
	for ; !slices.ContainsFunc(client.Actions(), watches); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("nothing is watched")
		}
	}
	if _, _, err := b.Current(); !errors.Is(err, ErrNoBundle) {
		t.Fatalf("without a ConfigMap: %v, want %v", err, ErrNoBundle)
	}
	published := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig}, Data: map[string]string{mesh.RootCertKey: string(ca.PEM())}}
	if _, err := client.CoreV1().ConfigMaps(mesh.Namespace).Create(ctx, published, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReady(ctx); err != nil || !b.trusts(ca.Cert) {
		t.Fatalf("with a ConfigMap: %v, root trusted: %v", err, b.trusts(ca.Cert))
	}
}

func TestConfigMapCannotAddARootWhileTheStreamIsThere(t *testing.T) {
	ca, attacker := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	forged := map[string]string{mesh.BundleKey: string(ca.Document(100, attacker.Cert)), mesh.RootCertKey: string(attacker.PEM())}
	b, clock := newBundle(t)
	b.offer(map[string]string{mesh.RootCertKey: string(ca.PEM())})
	if !b.trusts(ca.Cert) || b.sequence() != 0 {
		t.Fatal("the ConfigMap is not where it begins")
	}
	if err := b.hear(ca.Document(5), nil, 0, true); err != nil {
		t.Fatal(err)
	}
	b.offer(forged)
	clock.Step(24 * time.Hour)
	b.offer(forged)
	if b.trusts(attacker.Cert) || b.sequence() != 5 {
		t.Fatal("a ConfigMap has added a root beside the stream")
	}
	b.hungUp()
	clock.Step(59 * time.Second)
	b.offer(forged)
	if b.trusts(attacker.Cert) {
		t.Fatal("a ConfigMap has added a root within a minute of the stream")
	}
	clock.Step(2 * time.Second)
	b.offer(map[string]string{mesh.BundleKey: string(ca.Document(5, attacker.Cert))})
	b.offer(map[string]string{mesh.RootCertKey: string(attacker.PEM())})
	if b.trusts(attacker.Cert) {
		t.Fatal("took a ConfigMap that is not newer")
	}
	next := svidtest.New(t, "cluster.local")
	b.offer(map[string]string{mesh.BundleKey: string(ca.Document(6, next.Cert))})
	if !b.trusts(next.Cert) || b.sequence() != 6 {
		t.Fatal("with the stream away for long, a newer ConfigMap should count")
	}
}

func TestSequenceOnlyRisesWithinAStream(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	b, _ := newBundle(t)
	for _, step := range []struct {
		sequence uint64
		first    bool
		want     uint64
	}{{7, true, 7}, {6, false, 7}, {8, false, 8}, {8, false, 8}, {3, true, 3}, {2, false, 3}} {
		err := b.hear(ca.Document(step.sequence), nil, 0, step.first)
		if (err == nil) != (step.sequence == step.want) || b.sequence() != step.want {
			t.Fatalf("%+v: holding %d, %v", step, b.sequence(), err)
		}
	}
}

func TestDocumentsThatAreRefused(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	leaf := ca.SVID(ca.ID("ns", "sa"), time.Now().Add(time.Hour)).Certificates[0]
	marshal := func(keys ...jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(string(b), "}") + `,"spiffe_sequence":1}`
	}
	root := jose.JSONWebKey{Key: ca.Cert.PublicKey, Certificates: []*x509.Certificate{ca.Cert}, Use: "x509-svid"}
	if _, err := ParseDocument(td, []byte(marshal(root))); err != nil {
		t.Fatal(err)
	}
	many := make([]jose.JSONWebKey, 101)
	for i := range many {
		many[i] = root
	}
	for name, doc := range map[string]string{
		"nothing":             "",
		"no keys":             `{"spiffe_sequence":1}`,
		"no sequence":         strings.Replace(marshal(root), `,"spiffe_sequence":1`, "", 1),
		"no root":             `{"keys":[],"spiffe_sequence":1}`,
		"too many keys":       marshal(many...),
		"too long":            marshal(root) + strings.Repeat(" ", maxDocument),
		"a leaf as root":      marshal(root, jose.JSONWebKey{Key: leaf.PublicKey, Certificates: []*x509.Certificate{leaf}, Use: "x509-svid"}),
		"a symmetric key":     marshal(root, jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "k", Use: "jwt-svid"}),
		"a key without an ID": marshal(root, jose.JSONWebKey{Key: ca.Cert.PublicKey, Use: "jwt-svid"}),
		"a private key":       marshal(root, jose.JSONWebKey{Key: ca.SVID(ca.ID("ns", "sa"), time.Now()).PrivateKey, KeyID: "k", Use: "jwt-svid"}),
	} {
		if _, err := ParseDocument(td, []byte(doc)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzBundleDocument(f *testing.F) {
	ca := svidtest.New(f, "cluster.local")
	f.Add(ca.Document(1))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA","use":"jwt-svid","kid":"a"}],"spiffe_sequence":18446744073709551615}`))
	f.Add([]byte(`{"keys":null}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		b, err := ParseDocument(td, document)
		if err != nil {
			return
		}
		if len(b.X509Authorities()) == 0 || len(b.X509Authorities())+len(b.JWTAuthorities()) > maxKeys {
			t.Fatalf("%d roots, %d keys", len(b.X509Authorities()), len(b.JWTAuthorities()))
		}
		// What is taken can be published again and means the same.
		again, err := b.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		second, err := ParseDocument(td, again)
		if err != nil || !second.Equal(b) {
			t.Fatalf("%s: %v", again, err)
		}
	})
}
