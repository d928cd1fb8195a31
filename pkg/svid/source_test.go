package svid

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func bundleConfigMap(pem []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig, Namespace: mesh.Namespace}, Data: map[string]string{mesh.RootCertKey: string(pem)},
	}
}

func startSource(t *testing.T, o Options) *Source {
	t.Helper()
	o.TrustDomain, o.Log = "cluster.local", quiet
	s, err := NewSource(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func TestSourceWaitsForTheBundleThenGetsItsSVID(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	citadel := ca.Serve(time.Hour)
	id := ca.ID(mesh.Namespace, mesh.PilotAccount)
	citadel.Account("pilots-token", id)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("pilots-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset()
	s := startSource(t, Options{Client: client, Citadel: citadel.Address, TokenFile: token})

	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.WaitReady(short); err == nil {
		t.Fatal("ready without a trust bundle")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := client.CoreV1().ConfigMaps(mesh.Namespace).Create(ctx, bundleConfigMap(ca.PEM()), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetX509SVID()
	if err != nil || got.ID.String() != id.String() {
		t.Fatalf("SVID %v, %v", got, err)
	}
	if len(got.Certificates) != 1 {
		t.Fatalf("%d certificates; the root should not be sent to peers", len(got.Certificates))
	}
	if b, err := s.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("cluster.local")); err != nil || !b.HasX509Authority(ca.Cert) {
		t.Fatalf("bundle: %v", err)
	}
	if _, err := s.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.domain")); err == nil {
		t.Fatal("a bundle for another trust domain")
	}
}

func TestDamagedBundleIsIgnored(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	client := fake.NewClientset(bundleConfigMap(ca.PEM()))
	s := startSource(t, Options{Client: client, Citadel: "127.0.0.1:1", TokenFile: "/nowhere"})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Bundle.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := client.CoreV1().ConfigMaps(mesh.Namespace).Update(ctx, bundleConfigMap([]byte(bad)), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	other := svidtest.New(t, "cluster.local")
	if _, err := client.CoreV1().ConfigMaps(mesh.Namespace).Update(ctx, bundleConfigMap(other.PEM()), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	// The good one after the bad ones is seen, and until then the first stays.
	eventually(t, "the new bundle", func() bool {
		b, _, err := s.Bundle.Current()
		if err != nil || !b.X509.HasX509Authority(ca.Cert) && !b.X509.HasX509Authority(other.Cert) {
			t.Fatalf("no good bundle: %v", err)
		}
		return b.X509.HasX509Authority(other.Cert)
	})
}

func TestRequestRefusesWhatItShouldNotTrust(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	id := ca.ID("ns", "sa")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	t.Run("a Citadel of another CA", func(t *testing.T) {
		impostor := svidtest.New(t, "cluster.local").Serve(time.Hour)
		r := requester(t, impostor.Address, ca)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := r.Request(short, Tokens{Workload: "secret-token"}, 0, time.Now()); err == nil {
			t.Fatal("asked an impostor")
		}
		if len(impostor.Calls()) > 0 {
			t.Fatal("the impostor has seen a token")
		}
	})
	t.Run("an error of Citadel", func(t *testing.T) {
		citadel := ca.Serve(time.Hour)
		citadel.Fail(status.Error(codes.PermissionDenied, "pod is on another node"))
		_, err := requester(t, citadel.Address, ca).Request(ctx, Tokens{Workload: "x"}, 0, time.Now())
		if err == nil || !strings.Contains(err.Error(), "another node") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("an expired answer", func(t *testing.T) {
		citadel := ca.Serve(time.Minute)
		citadel.Account("x", id)
		if _, err := requester(t, citadel.Address, ca).Request(ctx, Tokens{Workload: "x"}, 0, time.Now().Add(time.Hour)); err == nil {
			t.Fatal("took a certificate that is over")
		}
	})
	t.Run("no valid token", func(t *testing.T) {
		citadel := ca.Serve(time.Hour)
		if _, err := requester(t, citadel.Address, ca).Obtain(ctx, Tokens{Workload: "x", Expires: time.Now()}, ca.SVID(id, time.Now()), 0, time.Now()); !errors.Is(err, ErrNoToken) || len(citadel.Calls()) > 0 {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("both tokens are sent", func(t *testing.T) {
		citadel := ca.Serve(time.Hour)
		citadel.Account("pods", id)
		if _, err := requester(t, citadel.Address, ca).Request(ctx, Tokens{Workload: "pods", Agent: "agents"}, 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := citadel.Calls()[0].Get(mesh.AgentTokenHeader); len(got) != 1 || got[0] != "Bearer agents" {
			t.Fatalf("agent's header %q", got)
		}
	})
}

func requester(t *testing.T, address string, ca *svidtest.CA) *Requester {
	t.Helper()
	r, err := NewRequester(address, "cluster.local", ca.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestAssembleRefusesAnotherKey(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	mine, other := ca.SVID(ca.ID("ns", "sa"), time.Now().Add(time.Hour)), ca.SVID(ca.ID("ns", "sa"), time.Now().Add(time.Hour))
	pem, _, err := other.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := assemble([]string{string(pem)}, mine.PrivateKey, ca.Bundle(), time.Now()); err == nil {
		t.Fatal("took a certificate for another key")
	}
	if _, err := assemble(nil, mine.PrivateKey, ca.Bundle(), time.Now()); err == nil {
		t.Fatal("took an empty chain")
	}
}

func TestRenewsByItsCertificateWhenTokensAreOfNoUse(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	id := ca.ID("ns", "sa")
	now := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	current := ca.SVID(id, now.Add(time.Hour))
	for name, c := range map[string]struct {
		tokens  Tokens
		failure error
		renewed bool
	}{
		"the token has ended":           {Tokens{Workload: "t", Expires: now}, nil, true},
		"there is no token":             {Tokens{}, nil, true},
		"the API server is away":        {Tokens{Workload: "t"}, status.Error(codes.Unavailable, "cannot review"), true},
		"the token is not accepted":     {Tokens{Workload: "t"}, status.Error(codes.Unauthenticated, "revoked"), false},
		"the pod is not there any more": {Tokens{Workload: "t"}, status.Error(codes.PermissionDenied, "gone"), false},
	} {
		citadel := ca.Serve(time.Hour)
		citadel.Fail(c.failure)
		got, err := requester(t, citadel.Address, ca).Obtain(ctx, c.tokens, current, 0, now)
		if c.renewed != (err == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			continue
		}
		calls := citadel.Calls()
		if got.ID.String() != id.String() || len(calls[len(calls)-1].Get("authorization")) > 0 {
			t.Errorf("%s: %s, by a token", name, got.ID)
		}
		if bytes.Equal(got.Certificates[0].RawSubjectPublicKeyInfo, current.Certificates[0].RawSubjectPublicKeyInfo) {
			t.Errorf("%s: the old key again", name)
		}
	}
}

func TestRenewRefusesAnotherIdentity(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	citadel := ca.Serve(time.Hour)
	current := ca.SVID(ca.ID("ns", "sa"), time.Now().Add(time.Hour))
	current.ID = spiffeid.RequireFromString(ca.ID("ns", "other").String())
	if _, err := requester(t, citadel.Address, ca).Renew(ctx, current, 0, time.Now()); err == nil {
		t.Fatal("took another's certificate")
	}
}

func TestTokenEndIsReadFromTheToken(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	token, err := ca.Token("x", []string{"y"}, end)
	if err != nil || !TokenExpiry(token).Equal(end) {
		t.Fatalf("%v, %v", TokenExpiry(token), err)
	}
	for _, other := range []string{"", "a.b", "a.!.c", "a.e30.c"} {
		if !TokenExpiry(other).IsZero() {
			t.Errorf("%q ends", other)
		}
	}
}

// TestComponentFollowsCitadelsStream goes through the rotation of a root as a component sees it.
func TestComponentFollowsCitadelsStream(t *testing.T) {
	ca, next := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	citadel := ca.Serve(time.Hour)
	id := ca.ID(mesh.Namespace, mesh.PilotAccount)
	citadel.Account("pilots-token", id)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("pilots-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("POD_NAME", "pilot-0")
	t.Setenv("NODE_NAME", "node1")
	citadel.Publish(ca.Message(1))
	client := fake.NewClientset(bundleConfigMap(ca.PEM()))
	s := startSource(t, Options{Client: client, Citadel: citadel.Address, Leader: citadel.Address, TokenFile: token})
	reported := func(sequence uint64, issuer *x509.Certificate) func() bool {
		return func() bool {
			all := citadel.Holdings()
			if len(all) == 0 {
				return false
			}
			h := all[len(all)-1]
			return h.GetSequence() == sequence && h.GetProxiesSequence() == sequence && h.GetIssuers()[hex.EncodeToString(issuer.SubjectKeyId)] == 1 && len(h.GetIssuers()) == 1
		}
	}
	eventually(t, "report of bundle 1", reported(1, ca.Cert))
	if h := citadel.Holdings()[0]; h.GetComponent() != "pilot" || h.GetPod() != "pilot-0" || h.GetNode() != "node1" {
		t.Fatalf("%v", h)
	}
	citadel.Publish(ca.Message(2, next.Cert))
	eventually(t, "report of bundle 2", reported(2, ca.Cert))
	signing := next.Message(3, ca.Cert)
	citadel.SignBy(next)
	citadel.Publish(signing)
	eventually(t, "report of the new signer", reported(3, next.Cert))
	if _, err := client.CoreV1().ConfigMaps(mesh.Namespace).Update(context.Background(), bundleConfigMap(svidtest.New(t, "cluster.local").PEM()), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	citadel.Publish(&identityv1.Bundle{Document: []byte("rubbish")})
	citadel.Publish(next.Message(2, ca.Cert))
	citadel.Publish(next.Message(4, ca.Cert))
	eventually(t, "the bundle after what is refused", func() bool { return s.Bundle.sequence() == 4 })
	citadel.Publish(nil)
	eventually(t, "the stream ends", func() bool { s.Bundle.mu.RLock(); defer s.Bundle.mu.RUnlock(); return !s.Bundle.alive })
	citadel.Publish(next.Message(2, ca.Cert)) // restored from a backup
	eventually(t, "the stream comes back and says what it says", func() bool { return s.Bundle.sequence() == 2 })
	if _, err := s.GetJWTBundleForTrustDomain(td); err != nil {
		t.Fatal(err)
	}
}

func TestStreamIsSpokenWithCitadelAlone(t *testing.T) {
	ca, impostor := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	citadel, other := ca.Serve(time.Hour), impostor.Serve(time.Hour)
	citadel.Account("t", ca.ID(mesh.Namespace, mesh.PilotAccount))
	other.Publish(impostor.Message(9))
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startSource(t, Options{Client: fake.NewClientset(bundleConfigMap(ca.PEM())), Citadel: citadel.Address, Leader: other.Address, TokenFile: token})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if s.Bundle.sequence() != 0 || len(other.Holdings()) > 0 {
		t.Fatal("an impostor was heard")
	}
}

// forwarder passes new connections to a target that may change, as a Service does.
func forwarder(t *testing.T) (address string, target *atomic.Pointer[string]) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target = &atomic.Pointer[string]{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", *target.Load())
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			pass := func(to, from net.Conn) { _, _ = io.Copy(to, from); to.Close() }
			wg.Go(func() { pass(out, in) })
			wg.Go(func() { pass(in, out) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String(), target
}

func TestStreamGoesToTheCitadelThatLeadsNow(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	first, second := ca.Serve(time.Hour), ca.Serve(time.Hour)
	address, target := forwarder(t)
	target.Store(&first.Address)
	first.Account("t", ca.ID(mesh.Namespace, mesh.PilotAccount))
	first.Publish(ca.Message(1))
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startSource(t, Options{Client: fake.NewClientset(bundleConfigMap(ca.PEM())), Citadel: first.Address, Leader: address, TokenFile: token})
	eventually(t, "the bundle of the first", func() bool { return s.Bundle.sequence() == 1 })
	second.Publish(ca.Message(2))
	target.Store(&second.Address)
	first.Publish(nil) // it lives on and leads no more
	eventually(t, "the bundle of the second", func() bool { return s.Bundle.sequence() == 2 })
}
