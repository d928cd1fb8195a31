// Package svidtest is a certificate authority for tests, with a CSR service that answers like Citadel.
package svidtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// CA signs for a trust domain.
type CA struct {
	t           testing.TB
	TrustDomain string
	Cert        *x509.Certificate
	key         crypto.Signer
	tokenKey    *ecdsa.PrivateKey
}

// New returns a CA with a new root.
func New(t testing.TB, trustDomain string) *CA {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, TrustDomain: trustDomain, Cert: cert, key: key, tokenKey: newKey(t)}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ID returns the identity of a service account.
func (c *CA) ID(namespace, account string) spiffe.ID {
	c.t.Helper()
	id, err := spiffe.New(c.TrustDomain, namespace, account)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// PEM returns the root.
func (c *CA) PEM() []byte { return encode(c.Cert) }

// Bundle returns the trust bundle.
func (c *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(c.TrustDomain), []*x509.Certificate{c.Cert})
}

// SVID issues an SVID that ends at the given time.
func (c *CA) SVID(id spiffe.ID, notAfter time.Time) *x509svid.SVID {
	c.t.Helper()
	return c.SVIDOf(id, spiffe.Pod{}, notAfter)
}

// SVIDOf issues an SVID for a pod, or for none if that is the zero Pod.
func (c *CA) SVIDOf(id spiffe.ID, pod spiffe.Pod, notAfter time.Time) *x509svid.SVID {
	c.t.Helper()
	key := newKey(c.t)
	cert, err := c.sign(id, pod, key.Public(), notAfter)
	if err != nil {
		c.t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id.String()), Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func (c *CA) sign(id spiffe.ID, pod spiffe.Pod, key crypto.PublicKey, notAfter time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	var extra []pkix.Extension
	if pod != (spiffe.Pod{}) {
		e, err := pod.Extension()
		if err != nil {
			return nil, err
		}
		extra = append(extra, e)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-mesh.Backdate), NotAfter: notAfter, URIs: []*url.URL{uri}, ExtraExtensions: extra,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, c.Cert, key, c.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Citadel is a CSR service. It answers for the identity that Account gives the workload's token, and without a token for
// that of the client's certificate. It also issues JWT-SVIDs and sends trust bundles.
type Citadel struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	identityv1.UnimplementedTokensServer
	identityv1.UnimplementedTrustBundlesServer
	ca      *CA
	Address string

	mu       sync.Mutex
	roots    []*x509.Certificate // of clients
	accounts map[string]spiffe.ID
	life     time.Duration
	failure  error
	calls    []metadata.MD
	tokens   int
	bundle   *identityv1.Bundle
	changed  chan struct{} // closed and replaced with each bundle
	holdings []*identityv1.Holding
	server   *grpc.Server
}

// Serve starts a Citadel on a port of this machine, until the test ends.
func (c *CA) Serve(life time.Duration) *Citadel {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	s := &Citadel{ca: c, Address: l.Addr().String(), roots: []*x509.Certificate{c.Cert}, accounts: map[string]spiffe.ID{}, life: life, changed: make(chan struct{})}
	config := mtls.ServerWithoutClientCert(c.SVID(c.ID(mesh.Namespace, mesh.CitadelAccount), time.Now().Add(time.Hour)))
	config.ClientAuth, config.VerifyConnection = tls.RequestClientCert, s.verify
	s.start(l, config)
	c.t.Cleanup(func() { s.server.Stop() })
	return s
}

func (s *Citadel) start(l net.Listener, config *tls.Config) {
	s.server = grpc.NewServer(mtls.ServerOptions(config, mtls.Limits{})...)
	securityapi.RegisterIstioCertificateServiceServer(s.server, s)
	identityv1.RegisterTokensServer(s.server, s)
	identityv1.RegisterTrustBundlesServer(s.server, s)
	go s.server.Serve(l)
}

// Account gives an identity to whoever presents the token.
func (s *Citadel) Account(token string, id spiffe.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[token] = id
}

// Fail makes every call by token fail with the error, until it is called with nil.
func (s *Citadel) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
}

// Calls returns the headers of the calls so far.
func (s *Citadel) Calls() []metadata.MD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]metadata.MD(nil), s.calls...)
}

// CreateCertificate implements IstioCertificateService.
func (s *Citadel) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, md)
	id, err := s.caller(ctx, md)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	cert, err := s.ca.sign(id, spiffe.Pod{}, csr.PublicKey, time.Now().Add(s.life))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &securityapi.IstioCertificateResponse{CertChain: []string{string(encode(cert)), string(s.ca.PEM())}}, nil
}

// verify checks the client's certificate if there is one.
func (s *Citadel) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(s.ca.TrustDomain), s.roots)
	_, _, err := x509svid.Verify(state.PeerCertificates, bundle)
	return err
}

// caller is called with mu held.
func (s *Citadel) caller(ctx context.Context, md metadata.MD) (spiffe.ID, error) {
	v := md.Get("authorization")
	if len(v) == 0 {
		id, err := mtls.PeerID(ctx)
		if err != nil {
			return id, status.Error(codes.Unauthenticated, err.Error())
		}
		return id, nil
	}
	if s.failure != nil {
		return spiffe.ID{}, s.failure
	}
	for token, known := range s.accounts {
		if len(v) == 1 && v[0] == "Bearer "+token {
			return known, nil
		}
	}
	return spiffe.ID{}, status.Error(codes.Unauthenticated, "unknown token")
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
