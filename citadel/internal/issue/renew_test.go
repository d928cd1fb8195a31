package issue

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// presenting is a call over a connection whose client has presented the chain.
func presenting(chain []*x509.Certificate) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{
		Addr:     &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 4711},
		AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: chain}},
	})
}

// certificate issues one as the service would.
func (f fixture) certificate(t testing.TB, namespace, account string, pod spiffe.Pod) *x509svid.SVID {
	t.Helper()
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := spiffe.New("cluster.local", namespace, account)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := f.certify(f.Keeper.Current().Signer, ca.Request{ID: id, PublicKey: key.Public(), Pod: pod})
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id.String()), Certificates: chain, PrivateKey: key}
}

var payrollPod = spiffe.Pod{Name: "payroll-1", UID: "u1", Node: "node1"}

func TestCertificateRenewsItself(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	c.away.Store(true) // nothing of this needs the API server
	for name, test := range map[string]struct {
		svid *x509svid.SVID
		pod  spiffe.Pod
	}{
		"a pod": {s.certificate(t, "finance", "payroll", payrollPod), payrollPod},
		"Pilot": {s.certificate(t, mesh.Namespace, mesh.PilotAccount, spiffe.Pod{Name: "pilot-1", UID: "up", Node: "node1"}), spiffe.Pod{Name: "pilot-1", UID: "up", Node: "node1"}},
	} {
		resp, err := s.CreateCertificate(presenting(test.svid.Certificates), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := leafOf(t, resp)
		pod, err := spiffe.PodOf(leaf)
		if leaf.URIs[0].String() != test.svid.ID.String() || pod != test.pod || err != nil {
			t.Errorf("%s: renewed as %s of %v, %v", name, leaf.URIs[0], pod, err)
		}
	}
}

func TestCertificatesThatMayNotRenewThemselves(t *testing.T) {
	c := newCluster(t)
	s, other := newService(t, c), newService(t, c)
	pod := func(name, uid string) spiffe.Pod { return spiffe.Pod{Name: name, UID: uid, Node: "node1"} }
	own := func(p spiffe.Pod) []*x509.Certificate { return s.certificate(t, "finance", "payroll", p).Certificates }
	for name, test := range map[string]struct {
		chain  []*x509.Certificate
		code   codes.Code
		reason string
	}{
		"of no pod":               {own(spiffe.Pod{}), codes.PermissionDenied, "names no pod"},
		"of a pod that is gone":   {own(pod("gone", "u-gone")), codes.PermissionDenied, "does not exist"},
		"of a pod replaced":       {own(pod("payroll-1", "u0")), codes.PermissionDenied, "replaced"},
		"of a pod deleted":        {own(pod("dead", "u-dead")), codes.PermissionDenied, "grace is over"},
		"of a pod that has ended": {own(pod("ended", "u-ended")), codes.PermissionDenied, "has ended"},
		"of a pod elsewhere":      {own(pod("moved", "u-moved")), codes.PermissionDenied, "bound to node"},
		"of another's pod":        {s.certificate(t, "finance", "other", payrollPod).Certificates, codes.PermissionDenied, "runs as payroll"},
		"of another CA":           {other.certificate(t, "finance", "payroll", payrollPod).Certificates, codes.Unauthenticated, "does not verify"},
		"nothing":                 {nil, codes.Unauthenticated, "header authorization"},
	} {
		_, err := s.CreateCertificate(presenting(test.chain), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		if status.Code(err) != test.code || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: %v; want %s with %q", name, err, test.code, test.reason)
		}
	}
	// A header that is no good is not made up for by a certificate that is.
	ctx := metadata.NewIncomingContext(presenting(own(payrollPod)), metadata.Pairs("authorization", "Bearer rubbish"))
	if _, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a bad token over a good certificate: %v", err)
	}
	ctx = metadata.NewIncomingContext(presenting(own(payrollPod)), metadata.Pairs(mesh.AgentTokenHeader, "Bearer agent1"))
	if _, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an agent's token alone over a good certificate: %v", err)
	}
}

// A connection may be older than what it was accepted by.
func TestOldConnectionRenewsNothingThatTodayIsNotValid(t *testing.T) {
	s := newService(t, newCluster(t))
	ctx := presenting(s.certificate(t, "finance", "payroll", payrollPod).Certificates)
	renew := func() error {
		_, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		return err
	}
	if err := renew(); err != nil {
		t.Fatal(err)
	}
	before := s.Keeper.Current()
	m, err := ca.NewRoot("cluster.local", ca.P256, start, 100*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	next, err := ca.New(m, s.clock)
	if err != nil {
		t.Fatal(err)
	}
	s.Keeper.Set(catest.State(next, nil))
	if err := renew(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after its root was retired: %v", err)
	}
	s.Keeper.Set(before)
	s.clock.SetTime(start.Add(time.Hour + time.Second))
	if err := renew(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after it expired: %v", err)
	}
}

// listen serves as Citadel does, on a port of this machine.
func (f fixture) listen(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := f.certificate(t, mesh.Namespace, mesh.CitadelAccount, spiffe.Pod{})
	server := grpc.NewServer(mtls.ServerOptions(mtls.ServerWithOptionalClientCert(own, trustOf(f.Keeper), mtls.MemberOf("cluster.local")), mtls.Limits{MaxRecvMsgSize: 64 << 10})...)
	securityapi.RegisterIstioCertificateServiceServer(server, f.Service)
	identityv1.RegisterTokensServer(server, f.Service)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// dial connects with the certificate, or without one.
func (f fixture) dial(t testing.TB, address string, svid *x509svid.SVID) *grpc.ClientConn {
	t.Helper()
	citadel, err := spiffe.New("cluster.local", mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		t.Fatal(err)
	}
	config := mtls.ClientWithoutCert(trustOf(f.Keeper), mtls.OneOf(citadel))
	if svid != nil {
		config = mtls.Client(svid, trustOf(f.Keeper), mtls.OneOf(citadel))
	}
	conn, err := grpc.NewClient(address, mtls.DialOptions(config)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestRenewalOverAConnection(t *testing.T) {
	c := newCluster(t)
	s := newServiceAt(t, c, time.Now())
	address := s.listen(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ask := func(svid *x509svid.SVID) (*securityapi.IstioCertificateResponse, error) {
		return securityapi.NewIstioCertificateServiceClient(s.dial(t, address, svid)).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	}
	svid := s.certificate(t, "finance", "payroll", payrollPod)
	for generation := range 3 {
		key, err := ca.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := securityapi.NewIstioCertificateServiceClient(s.dial(t, address, svid)).CreateCertificate(ctx,
			&securityapi.IstioCertificateRequest{Csr: csrOf(t, key, x509.CertificateRequest{})})
		if err != nil {
			t.Fatalf("generation %d: %v", generation, err)
		}
		svid = &x509svid.SVID{ID: svid.ID, Certificates: []*x509.Certificate{leafOf(t, resp)}, PrivateKey: key}
	}
	if e := s.trail.last(t); !strings.HasPrefix(e.SourceAddress, "127.0.0.1:") {
		t.Errorf("peer %q in the trail", e.SourceAddress)
	}
	if _, err := ask(nil); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a certificate or token: %v", err)
	}
	other := newServiceAt(t, c, time.Now())
	if _, err := ask(other.certificate(t, "finance", "payroll", payrollPod)); status.Code(err) != codes.Unavailable {
		t.Errorf("with another CA's certificate: %v; want no connection", err)
	}
	if err := c.CoreV1().Pods("finance").Delete(ctx, "payroll-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod that is gone is refused", func() bool { _, err := ask(svid); return status.Code(err) == codes.PermissionDenied })
	if _, err := ask(s.certificate(t, "finance", "payroll", spiffe.Pod{})); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a Secret's certificate: %v", err)
	}
}
