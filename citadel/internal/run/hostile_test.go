package run

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
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
	signer, err := ca.New(m, clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	trust, err = newRoots(ca.NewKeeper(ca.NewState(signer, nil)), "cluster.local")
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

// Ten thousand calls at once over one connection, and a thousand connections that never finish their handshake: others
// are served meanwhile, and memory stays within 64 MiB.
func TestFloodOfCallsAndHandshakesIsBounded(t *testing.T) {
	service := &patient{takes: 50 * time.Millisecond}
	addr, trust := csrPort(t, service)
	other := trust.client(t, addr)
	if _, err := other.CreateCertificate(t.Context(), &securityapi.IstioCertificateRequest{}); err != nil {
		t.Fatal(err)
	}
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 1000 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "\x16\x03\x01") // the beginning of a handshake
	}
	flooder := trust.client(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 10000 {
		wg.Go(func() { _, _ = flooder.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{}) })
	}
	var worst time.Duration
	for range 20 {
		began := time.Now()
		call, done := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := other.CreateCertificate(call, &securityapi.IstioCertificateRequest{})
		done()
		if err != nil {
			t.Fatalf("another client is not served: %v", err)
		}
		worst = max(worst, time.Since(began))
	}
	runtime.ReadMemStats(&during)
	cancel()
	wg.Wait()
	if most := service.most.Load(); most > 101 {
		t.Errorf("%d calls of one connection were worked on at once", most)
	}
	// The flooding client is in this process too; and may have as much again.
	grown := (int64(during.HeapInuse) - int64(before.HeapInuse)) >> 20
	t.Logf("others waited %s at most for an answer that takes %s; the heap grew by %d MiB, the flooding client's included", worst.Round(time.Millisecond), service.takes, grown)
	if grown > 128 {
		t.Errorf("the heap grew by %d MiB", grown)
	}
}
