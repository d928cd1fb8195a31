package issue

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// cluster is a Kubernetes whose tokens are words.
type cluster struct {
	*fake.Clientset
	tokens  map[string]authv1.TokenReviewStatus
	reviews atomic.Int32
	failure error
}

func bound(namespace, account, pod, uid, node string) authv1.TokenReviewStatus {
	extra := map[string]authv1.ExtraValue{}
	for k, v := range map[string]string{"pod-name": pod, "pod-uid": uid, "node-name": node} {
		if v != "" {
			extra["authentication.kubernetes.io/"+k] = authv1.ExtraValue{v}
		}
	}
	return authv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{mesh.CitadelAudience},
		User: authv1.UserInfo{Username: "system:serviceaccount:" + namespace + ":" + account, Extra: extra},
	}
}

func newCluster() *cluster {
	pod := func(name, uid, node string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "finance", UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "payroll"}}
	}
	dying := pod("dying", "u-dying", "node1")
	dying.DeletionTimestamp = &metav1.Time{Time: start}
	dying.Finalizers = []string{"x/y"}
	otherAccount := pod("changed", "u-changed", "node1")
	otherAccount.Spec.ServiceAccountName = "other"
	other := bound("finance", "payroll", "payroll-1", "u1", "node1")
	other.Audiences = []string{"https://kubernetes.default.svc"}
	user := bound("finance", "payroll", "", "", "")
	user.User.Username = "system:admin"
	c := &cluster{
		Clientset: fake.NewClientset(pod("payroll-1", "u1", "node1"), dying, otherAccount, pod("moved", "u-moved", "node2")),
		tokens: map[string]authv1.TokenReviewStatus{
			"payroll":        bound("finance", "payroll", "payroll-1", "u1", "node1"),
			"agent1":         bound(mesh.Namespace, mesh.AgentAccount, "agent-a", "ua", "node1"),
			"agent2":         bound(mesh.Namespace, mesh.AgentAccount, "agent-b", "ub", "node2"),
			"nodeless-agent": bound(mesh.Namespace, mesh.AgentAccount, "", "", ""),
			"pilot":          bound(mesh.Namespace, mesh.PilotAccount, "pilot-1", "up", "node1"),
			"other-system":   bound(mesh.Namespace, "something", "s-1", "us", "node1"),
			"false-agent":    bound("finance", mesh.AgentAccount, "x", "ux", "node1"),
			"false-pilot":    bound("finance", mesh.PilotAccount, "payroll-1", "u1", "node1"),
			"unbound":        bound("finance", "payroll", "", "", ""),
			"gone":           bound("finance", "payroll", "gone", "u-gone", "node1"),
			"replaced":       bound("finance", "payroll", "payroll-1", "u0", "node1"),
			"dying":          bound("finance", "payroll", "dying", "u-dying", "node1"),
			"changed":        bound("finance", "payroll", "changed", "u-changed", "node1"),
			"moved":          bound("finance", "payroll", "moved", "u-moved", "node1"),
			"other-audience": other,
			"user":           user,
		},
	}
	c.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		c.reviews.Add(1)
		if c.failure != nil {
			return true, nil, c.failure
		}
		review := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
		if len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != mesh.CitadelAudience {
			return true, nil, errors.New("review without Citadel's audience")
		}
		name, _, _ := strings.Cut(review.Spec.Token, ".")
		review.Status = c.tokens[name]
		return true, review, nil
	})
	return c
}

func newService(t *testing.T, c *cluster) (*Service, *testclock.FakePassiveClock) {
	t.Helper()
	clock := testclock.NewFakePassiveClock(start)
	m, err := ca.NewRoot("cluster.local", ca.P256, start, 100*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(m, clock)
	if err != nil {
		t.Fatal(err)
	}
	return NewService(ca.NewKeeper(ca.NewState(authority, nil)), &Authorizer{Reviewer: NewReviewer(c.AuthenticationV1().TokenReviews(), clock), Pods: c.CoreV1()},
		Policy{TrustDomain: "cluster.local", TTL: time.Hour, MaxTTL: 2 * time.Hour, DNSNames: map[string][]string{mesh.PilotAccount: {"bulwark-pilot.bulwark-system.svc"}}},
		prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil))), clock
}

func csrOf(t *testing.T, key crypto.Signer, template x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func goodCSR(t *testing.T) string {
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return csrOf(t, key, x509.CertificateRequest{})
}

func as(tokens ...string) context.Context {
	md := metadata.MD{}
	for i, header := range []string{"authorization", mesh.AgentTokenHeader} {
		if i < len(tokens) && tokens[i] != "" {
			md.Set(header, "Bearer "+tokens[i])
		}
	}
	return metadata.NewIncomingContext(context.Background(), md)
}

func leafOf(t *testing.T, resp *securityapi.IstioCertificateResponse) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificateIsForTheAuthenticatedCaller(t *testing.T) {
	s, _ := newService(t, newCluster())
	for name, c := range map[string]struct {
		ctx  context.Context
		want string
		dns  int
	}{
		"a pod through the agent of its node": {as("payroll", "agent1"), "spiffe://cluster.local/ns/finance/sa/payroll", 0},
		"the agent itself":                    {as("agent1"), "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent", 0},
		"Pilot":                               {as("pilot"), "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-pilot", 1},
	} {
		resp, err := s.CreateCertificate(c.ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := leafOf(t, resp)
		if leaf.URIs[0].String() != c.want || len(leaf.DNSNames) != c.dns {
			t.Errorf("%s: %s %v", name, leaf.URIs[0], leaf.DNSNames)
		}
		if len(resp.GetCertChain()) != 2 {
			t.Errorf("%s: chain of %d", name, len(resp.GetCertChain()))
		}
	}
}

func TestCallersAreRefused(t *testing.T) {
	s, _ := newService(t, newCluster())
	twice := metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": {"Bearer pilot", "Bearer payroll"}})
	basic := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Basic pilot"))
	for name, c := range map[string]struct {
		ctx    context.Context
		code   codes.Code
		reason string
	}{
		"no token":                             {as(), codes.Unauthenticated, "header authorization"},
		"two tokens":                           {twice, codes.Unauthenticated, "there are 2"},
		"not a bearer token":                   {basic, codes.Unauthenticated, "Bearer"},
		"an unknown token":                     {as("rubbish"), codes.Unauthenticated, "not valid"},
		"an endless token":                     {as(strings.Repeat("x", 20<<10)), codes.Unauthenticated, "longer than"},
		"a token of another audience":          {as("other-audience", "agent1"), codes.Unauthenticated, "audiences"},
		"a user's token":                       {as("user", "agent1"), codes.Unauthenticated, "no service account"},
		"a pod without an agent":               {as("payroll"), codes.Unauthenticated, mesh.AgentTokenHeader},
		"the agent of another node":            {as("payroll", "agent2"), codes.PermissionDenied, "node2"},
		"an agent without a node":              {as("payroll", "nodeless-agent"), codes.PermissionDenied, "not bound to a node"},
		"a pod's own token as the agent's":     {as("payroll", "payroll"), codes.PermissionDenied, "not the node agent"},
		"an agent's name in another namespace": {as("payroll", "false-agent"), codes.PermissionDenied, "not the node agent"},
		"Pilot's name in another namespace":    {as("false-pilot"), codes.Unauthenticated, mesh.AgentTokenHeader},
		"another account of our namespace":     {as("other-system"), codes.Unauthenticated, mesh.AgentTokenHeader},
		"Pilot as an agent":                    {as("payroll", "pilot"), codes.PermissionDenied, "not the node agent"},
		"an unknown agent's token":             {as("payroll", "rubbish"), codes.Unauthenticated, "agent's token"},
		"a token that is bound to no pod":      {as("unbound", "agent1"), codes.PermissionDenied, "not bound to a pod"},
		"a pod that is gone":                   {as("gone", "agent1"), codes.PermissionDenied, "does not exist"},
		"a pod that was replaced":              {as("replaced", "agent1"), codes.PermissionDenied, "replaced"},
		"a pod that is being deleted":          {as("dying", "agent1"), codes.PermissionDenied, "being deleted"},
		"a pod of another account":             {as("changed", "agent1"), codes.PermissionDenied, "runs as other"},
		"a pod that is bound elsewhere":        {as("moved", "agent1"), codes.PermissionDenied, "bound to node node2"},
	} {
		_, err := s.CreateCertificate(c.ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		if status.Code(err) != c.code || !strings.Contains(fmt.Sprint(err), c.reason) {
			t.Errorf("%s: %v; want %s with %q", name, err, c.code, c.reason)
		}
	}
}

func TestOnlyTheKeyOfACSRCounts(t *testing.T) {
	s, _ := newService(t, newCluster())
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	uri := func(s string) *url.URL { u, _ := url.Parse(s); return u }
	for name, template := range map[string]x509.CertificateRequest{
		"foreign identity":        {URIs: []*url.URL{uri("spiffe://cluster.local/ns/bulwark-system/sa/bulwark-pilot")}},
		"two identities":          {URIs: []*url.URL{uri("spiffe://cluster.local/ns/finance/sa/payroll"), uri("spiffe://cluster.local/ns/a/sa/b")}},
		"DNS names and a subject": {DNSNames: []string{"bulwark-pilot.bulwark-system.svc"}, Subject: pkix.Name{CommonName: "root"}},
		"CA:TRUE":                 {ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}},
	} {
		resp, err := s.CreateCertificate(as("payroll", "agent1"), &securityapi.IstioCertificateRequest{Csr: csrOf(t, key, template)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := leafOf(t, resp)
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/finance/sa/payroll" || leaf.IsCA || len(leaf.DNSNames) > 0 || leaf.Subject.String() != "" {
			t.Errorf("%s: certificate has %v %v %v CA=%v", name, leaf.URIs, leaf.DNSNames, leaf.Subject, leaf.IsCA)
		}
	}
}

func TestCSRsAreRefused(t *testing.T) {
	s, _ := newService(t, newCluster())
	good := goodCSR(t)
	block, _ := pem.Decode([]byte(good))
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	forged := append([]byte{}, block.Bytes...)
	forged[len(forged)-1] ^= 1
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string]string{
		"nothing":                   "",
		"not PEM":                   "hello",
		"a certificate":             encode("CERTIFICATE", block.Bytes),
		"rubbish in PEM":            encode("CERTIFICATE REQUEST", []byte("rubbish")),
		"trailing bytes inside":     encode("CERTIFICATE REQUEST", append(append([]byte{}, block.Bytes...), 0)),
		"something after it":        good + "trailing",
		"two requests":              good + good,
		"a signature not its own":   encode("CERTIFICATE REQUEST", forged),
		"P-224":                     csrOf(t, p224, x509.CertificateRequest{}),
		"RSA of 1024 bits":          csrOf(t, small, x509.CertificateRequest{}),
		"longer than it may be":     good + strings.Repeat("\n", maxCSR),
		"RSA of 16384 bits, forged": encode("CERTIFICATE REQUEST", hugeRSA(t)),
	} {
		began := time.Now()
		_, err := s.CreateCertificate(as("payroll", "agent1"), &securityapi.IstioCertificateRequest{Csr: csr})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("%s: took %s", name, took)
		}
	}
}

// hugeRSA is a CSR with an RSA key of 16384 bits. Its signature is none, which must not matter: checking it would take
// the CA seconds.
func hugeRSA(t *testing.T) []byte {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 16383)
	key, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	info, err := asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{Subject: asn1.RawValue{FullBytes: []byte{0x30, 0}}, PublicKey: asn1.RawValue{FullBytes: key}})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}, asn1.BitString{Bytes: make([]byte, 2048), BitLength: 16384}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificateRequest(der); err != nil {
		t.Fatalf("the test's CSR cannot be parsed: %v", err)
	}
	return der
}

func TestValidityIsClamped(t *testing.T) {
	s, _ := newService(t, newCluster())
	for asked, want := range map[int64]time.Duration{0: time.Hour, -5: time.Hour, 60: time.Minute, 7200: 2 * time.Hour, 1 << 40: 2 * time.Hour, 1<<63 - 1: 2 * time.Hour} {
		resp, err := s.CreateCertificate(as("pilot"), &securityapi.IstioCertificateRequest{Csr: goodCSR(t), ValidityDuration: asked})
		if err != nil {
			t.Fatal(err)
		}
		if got := leafOf(t, resp).NotAfter.Sub(start); got != want {
			t.Errorf("asked for %d s: got %s, want %s", asked, got, want)
		}
	}
}

func TestReviewsAreRememberedBrieflyAndNeverBeyondTheToken(t *testing.T) {
	c := newCluster()
	s, clock := newService(t, c)
	ask := func(token string) {
		t.Helper()
		if _, err := s.CreateCertificate(as(token), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); err != nil {
			t.Fatal(err)
		}
	}
	ask("pilot")
	ask("pilot")
	if n := c.reviews.Load(); n != 1 {
		t.Fatalf("%d reviews", n)
	}
	clock.SetTime(start.Add(reviewFor))
	ask("pilot")
	if n := c.reviews.Load(); n != 2 {
		t.Fatalf("%d reviews after %s", n, reviewFor)
	}
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, clock.Now().Add(time.Second).Unix()))
	ask("pilot." + claims + ".signature")
	clock.SetTime(clock.Now().Add(time.Second))
	ask("pilot." + claims + ".signature")
	if n := c.reviews.Load(); n != 4 {
		t.Fatalf("%d reviews; a token was believed beyond its end", n)
	}
}

// A pod that is deleted while its token is still remembered gets nothing more.
func TestDeletedPodIsRefusedAtOnce(t *testing.T) {
	c := newCluster()
	s, _ := newService(t, c)
	req := &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}
	if _, err := s.CreateCertificate(as("payroll", "agent1"), req); err != nil {
		t.Fatal(err)
	}
	if err := c.CoreV1().Pods("finance").Delete(context.Background(), "payroll-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateCertificate(as("payroll", "agent1"), req); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("error %v", err)
	}
}

func TestAPIServerAwayIsNoVerdict(t *testing.T) {
	c := newCluster()
	s, _ := newService(t, c)
	c.failure = errors.New("connection refused")
	_, err := s.CreateCertificate(as("pilot"), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("error %v; a client would not try again", err)
	}
}

func FuzzCSR(f *testing.F) {
	key, err := ca.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		public, err := publicKey(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Fatalf("%v", err)
			}
			return
		}
		if ca.CheckKey(public) != nil {
			t.Fatal("a weak key passed")
		}
	})
}
