package run

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	securityapi "istio.io/api/security/v1alpha1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spool"
)

// citadel is the CSR service as Citadel puts it together and serves it, with its spool, on a cluster where the word
// "pilot" is the token of Pilot's pod.
type citadel struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	*issuance
	stateDir string
	addr     string
	csr      string
	answers  func(*securityapi.IstioCertificateResponse) // called with each answer before it is sent, if set
}

// CreateCertificate implements IstioCertificateService.
func (c *citadel) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	resp, err := c.service.CreateCertificate(ctx, req)
	if err == nil && c.answers != nil {
		c.answers(resp)
	}
	return resp, err
}

func newCitadel(t *testing.T) *citadel {
	t.Helper()
	client := fake.NewClientset(
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pilot-1", Namespace: mesh.Namespace, UID: "up"}, Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: mesh.PilotAccount}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: mesh.PilotAccount, Namespace: mesh.Namespace, UID: "ap"}})
	client.PrependReactor("create", "tokenreviews", review)
	s := Defaults()
	s.StateDir = t.TempDir()
	m, err := ca.NewRoot(s.TrustDomain, ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ca.New(m, clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	keeper := ca.NewKeeper(catest.State(signer, nil))
	trust, err := newRoots(keeper, s.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := podwatch.New(client, quiet)
	if err != nil {
		t.Fatal(err)
	}
	c := &citadel{stateDir: s.StateDir, csr: newCSR(t)}
	if c.issuance, err = newIssuance(s, clients{issue: client}, keeper, trust, pods, prometheus.NewRegistry(), quiet); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = pods.Run(ctx) })
	wg.Go(func() { _ = c.revocations.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); c.events.Close() })
	if err := pods.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); c.revocations.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(c.revocations.Ready())
		}
	}
	c.addr, c.trust = csrPortOf(t, m, c)
	return c
}

func review(a clienttesting.Action) (bool, runtime.Object, error) {
	out := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
	out.Status = authv1.TokenReviewStatus{Authenticated: out.Spec.Token == "pilot", Audiences: out.Spec.Audiences, User: authv1.UserInfo{
		Username: "system:serviceaccount:" + mesh.Namespace + ":" + mesh.PilotAccount, UID: "ap", Extra: map[string]authv1.ExtraValue{
			"authentication.kubernetes.io/pod-name": {"pilot-1"}, "authentication.kubernetes.io/pod-uid": {"up"}, "authentication.kubernetes.io/node-name": {"node1"}}}}
	return true, out, nil
}

func newCSR(t *testing.T) string {
	t.Helper()
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// issue has a certificate issued to Pilot.
func (c *citadel) issue(ctx context.Context, client securityapi.IstioCertificateServiceClient, o ...grpc.CallOption) (*securityapi.IstioCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer pilot"), 10*time.Second)
	defer cancel()
	return client.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: c.csr}, o...)
}

// A Citadel that is killed right after an answer, or in the middle of it, leaves the event of what it has issued.
func TestEventIsInTheSpoolBeforeTheAnswer(t *testing.T) {
	c := newCitadel(t)
	client := c.trust.client(t, c.addr)
	answered := 0
	c.answers = func(resp *securityapi.IstioCertificateResponse) {
		answered++
		certs, err := ca.DecodeCerts([]byte(resp.CertChain[0]))
		if err != nil {
			t.Error(err)
			return
		}
		left := filepath.Join(t.TempDir(), "spool")
		if err := os.CopyFS(left, os.DirFS(filepath.Join(c.stateDir, "spool"))); err != nil {
			t.Error(err)
			return
		}
		if !holds(t, left, certs[0].SerialNumber.Text(16)) {
			t.Errorf("certificate %d is answered before its event is written", answered)
		}
		next, err := spool.Open(left, spoolBytes, nil, time.Now)
		if err != nil {
			t.Errorf("what a killed Citadel leaves: %v", err)
			return
		}
		defer next.Close()
		if waiting := next.Stats().Unacked; waiting < uint64(answered) {
			t.Errorf("the next process finds %d events of %d certificates", waiting, answered)
		}
	}
	for range 20 {
		if _, err := c.issue(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if answered != 20 {
		t.Fatalf("%d answers", answered)
	}
}

// holds tells whether a text is in one of a directory's files.
func holds(t *testing.T, dir, text string) bool {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(content, []byte(text)) {
			return true
		}
	}
	return false
}
