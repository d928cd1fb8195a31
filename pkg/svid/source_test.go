package svid

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

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
		if err != nil || !b.HasX509Authority(ca.Cert) && !b.HasX509Authority(other.Cert) {
			t.Fatalf("no good bundle: %v", err)
		}
		return b.HasX509Authority(other.Cert)
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
