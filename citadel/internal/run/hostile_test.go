package run

import (
	"context"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// patient answers every call at its own pace.
type patient struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	takes   time.Duration
	working atomic.Int32
	most    atomic.Int32
}

func (p *patient) CreateCertificate(ctx context.Context, _ *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	n := p.working.Add(1)
	defer p.working.Add(-1)
	for most := p.most.Load(); n > most && !p.most.CompareAndSwap(most, n); most = p.most.Load() {
	}
	select {
	case <-ctx.Done():
	case <-time.After(p.takes):
	}
	return &securityapi.IstioCertificateResponse{}, nil
}

// csrPort is the CSR port as Citadel opens it, in front of a service.
func csrPort(t *testing.T, service securityapi.IstioCertificateServiceServer) (addr string, trust roots) {
	t.Helper()
	m, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return csrPortOf(t, m, service)
}

func csrPortOf(t *testing.T, m ca.Material, service securityapi.IstioCertificateServiceServer) (addr string, trust roots) {
	t.Helper()
	signer, err := ca.New(m, clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	trust, err = newRoots(ca.NewKeeper(catest.State(signer, nil)), "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id := spiffe.ID{TrustDomain: "cluster.local", Namespace: mesh.Namespace, ServiceAccount: mesh.CitadelAccount}
	own := svid.NewRotator(func(context.Context) (*x509svid.SVID, error) {
		key, err := ca.NewKey()
		if err != nil {
			return nil, err
		}
		chain, err := signer.Issue(ca.Request{ID: id, PublicKey: key.Public(), TTL: time.Hour})
		return &x509svid.SVID{ID: spiffeid.RequireFromString(id.String()), Certificates: chain, PrivateKey: key}, err
	}, clock.RealClock{}, quiet, nil)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var serving atomic.Bool
	wg.Go(func() { own.Run(ctx) })
	wg.Go(func() {
		config := mtls.ServerWithOptionalClientCert(own, trust, mtls.MemberOf("cluster.local"))
		if err := serveCSR(ctx, addr, config, own, &serving, func(r grpc.ServiceRegistrar) { securityapi.RegisterIstioCertificateServiceServer(r, service) }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	for deadline := time.Now().Add(10 * time.Second); !serving.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the port is not open")
		}
	}
	return addr, trust
}

func (r roots) client(t *testing.T, addr string) securityapi.IstioCertificateServiceClient {
	t.Helper()
	id := spiffe.ID{TrustDomain: "cluster.local", Namespace: mesh.Namespace, ServiceAccount: mesh.CitadelAccount}
	conn, err := grpc.NewClient(addr, append(mtls.DialOptions(mtls.ClientWithoutCert(r, mtls.OneOf(id))), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(32<<20)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return securityapi.NewIstioCertificateServiceClient(conn)
}

func TestCSRPortTakesNothingWithoutTLS13AndNothingOversized(t *testing.T) {
	addr, trust := csrPort(t, &patient{})
	for name, config := range map[string]*tls.Config{
		"TLS 1.2": {MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: []string{"h2"}}, //nolint:gosec // what is tested
		"TLS 1.0": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10, InsecureSkipVerify: true, NextProtos: []string{"h2"}}, //nolint:gosec // what is tested
	} {
		if conn, err := tls.Dial("tcp", addr, config); err == nil {
			conn.Close()
			t.Errorf("%s is spoken", name)
		}
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	buf := make([]byte, 64)
	if n, _ := conn.Read(buf); n > 0 && buf[0] != 0x15 { // 0x15: a TLS alert
		t.Errorf("HTTP/2 without TLS is answered: %q", buf[:n])
	}
	client := trust.client(t, addr)
	if _, err := client.CreateCertificate(t.Context(), &securityapi.IstioCertificateRequest{Csr: "small"}); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{64<<10 + 1, 4<<20 + 1} {
		if _, err := client.CreateCertificate(t.Context(), &securityapi.IstioCertificateRequest{Csr: strings.Repeat("x", size)}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a message of %d bytes: %v", size, err)
		}
	}
	long := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+strings.Repeat("x", 40<<10))
	if _, err := client.CreateCertificate(long, &securityapi.IstioCertificateRequest{}); err == nil {
		t.Error("headers of 40 KiB are taken")
	}
}

// named answers who calls.
type named struct {
	securityapi.UnimplementedIstioCertificateServiceServer
}

func (named) CreateCertificate(ctx context.Context, _ *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	id, err := mtls.PeerID(ctx)
	return &securityapi.IstioCertificateResponse{CertChain: []string{id.String()}}, err
}

// The CA's own key signs these here, which Citadel never would: what resembles an identity does not even connect.
func TestClientCertificateThatResemblesAnIdentityEndsTheHandshake(t *testing.T) {
	m, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := csrPortOf(t, m, named{})
	caKey, err := ca.DecodeKey(m.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := m.Roots()
	if err != nil {
		t.Fatal(err)
	}
	const id = "spiffe://cluster.local/ns/finance/sa/payroll"
	uri := func(names ...string) func(*x509.Certificate) {
		var all []asn1.RawValue
		for _, n := range names {
			all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(n)})
		}
		return raw(t, all...)
	}
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		want   bool
	}{
		"the identity itself":      {uri(id), true},
		"a NUL and more after it":  {uri(id + "\x00.evil"), false},
		"a NUL in it":              {uri("spiffe://cluster.local/ns/finance/sa/pay\x00roll"), false},
		"two identities":           {uri(id, id), false},
		"its name as an otherName": {raw(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 3, 42, 3, 4, 0xa0, 2, 12, 0}}), false},
		"no name":                  {func(*x509.Certificate) {}, false},
		"upper case":               {uri("spiffe://CLUSTER.LOCAL/ns/finance/sa/payroll"), false},
		"a dot segment":            {uri("spiffe://cluster.local/ns/finance/sa/x/../payroll"), false},
		"an escape":                {uri("spiffe://cluster.local/ns/finance/sa/%70ayroll"), false},
		"the trust domain alone":   {uri("spiffe://cluster.local"), false},
		"more than 2048 bytes":     {uri("spiffe://cluster.local/ns/finance/sa/" + strings.Repeat("a", 2048)), false},
		"a certificate that signs": {func(c *x509.Certificate) { uri(id)(c); c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign }, false},
		"one that has ended":       {func(c *x509.Certificate) { uri(id)(c); c.NotAfter = time.Now().Add(-time.Second) }, false},
		"one that has not begun":   {func(c *x509.Certificate) { uri(id)(c); c.NotBefore = time.Now().Add(time.Minute) }, false},
	} {
		key, err := ca.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		c.change(template)
		der, err := x509.CreateCertificate(cryptorand.Reader, template, roots[0], key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}} //nolint:gosec // the client is the attacker
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		call, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(call, &securityapi.IstioCertificateRequest{})
		cancel()
		conn.Close()
		if (err == nil) != c.want {
			t.Errorf("%s: %v %v", name, resp.GetCertChain(), err)
		}
	}
}

// raw is a subject alternative name of the given GeneralNames.
func raw(t *testing.T, names ...asn1.RawValue) func(*x509.Certificate) {
	t.Helper()
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der})
	}
}
