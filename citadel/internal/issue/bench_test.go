package issue

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// What a certificate costs: in the service alone, and as a call over TLS with client and server in this process. The
// ceiling is the same call answered with one P-256 signature, which no CA can do without.
//
//	go test -run xxx -bench 'Service|Call' ./citadel/internal/issue

// bench is a service whose limits are out of the way, with tokens as Kubernetes signs them.
type bench struct {
	fixture
	req    *securityapi.IstioCertificateRequest
	tokens metadata.MD
	pod    [32]byte // hash of the pod's token
	svid   *x509svid.SVID
}

// forget makes the pod's token new: each pod has its own, while its agent's comes again and again.
func (s *bench) forget() { s.keys.set.verified.Remove(s.pod) }

func newBench(b *testing.B) *bench {
	c := newCluster(b)
	now := time.Now()
	s := newServiceAt(b, c, now)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	s.keys.set.keys["k2"] = jose.JSONWebKey{Key: key.Public(), KeyID: "k2", Algorithm: "RS256"}
	sign := func(name string) string {
		body := claims(name)
		body["exp"], body["nbf"], body["iat"] = now.Add(time.Hour).Unix(), now.Unix(), now.Unix()
		return signWith(b, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "k2"}}, body)
	}
	for _, l := range s.limits {
		l.clock = &running{start: now}
	}
	workload := sign("payroll")
	return &bench{
		pod:     sha256.Sum256([]byte(workload)),
		fixture: s, req: &securityapi.IstioCertificateRequest{Csr: goodCSR(b)}, svid: s.certificate(b, "finance", "payroll", payrollPod),
		tokens: metadata.Pairs("authorization", "Bearer "+workload, mesh.AgentTokenHeader, "Bearer "+sign("agent1")),
	}
}

// running is a clock by which every call comes a tenth of a second after the last, so that no limit is met.
type running struct {
	start time.Time
	calls int64
}

func (r *running) Now() time.Time {
	r.calls++ // under the limits' own lock
	return r.start.Add(time.Duration(r.calls) * 100 * time.Millisecond)
}

func (r *running) Since(t time.Time) time.Duration { return r.Now().Sub(t) }

func BenchmarkServiceByToken(b *testing.B) {
	s := newBench(b)
	s.calls(b, metadata.NewIncomingContext(context.Background(), s.tokens), s.forget)
}

func BenchmarkServiceByTokenSeenBefore(b *testing.B) {
	s := newBench(b)
	s.calls(b, metadata.NewIncomingContext(context.Background(), s.tokens), func() {})
}

func BenchmarkServiceByCertificate(b *testing.B) {
	s := newBench(b)
	s.calls(b, presenting(s.svid.Certificates), func() {})
}

func (s *bench) calls(b *testing.B, ctx context.Context, before func()) {
	measure(b, func() {
		before()
		if _, err := s.CreateCertificate(ctx, s.req); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkCallByToken(b *testing.B) {
	s := newBench(b)
	s.over(b, s.dial(b, s.listen(b), nil), s.tokens)
}

func BenchmarkCallByCertificate(b *testing.B) {
	s := newBench(b)
	s.over(b, s.dial(b, s.listen(b), s.svid), nil)
}

// Renewals come over a connection each, because each pod has its own certificate.
func BenchmarkCallByCertificateWithHandshake(b *testing.B) {
	s := newBench(b)
	s.connecting(b, s.listen(b))
}

func BenchmarkCallCeiling(b *testing.B) {
	s := newBench(b)
	s.over(b, s.dial(b, s.listenSigning(b, nil), nil), s.tokens)
}

// The ceiling, and with it the two signatures that a CA may not believe unseen: that of the CSR, and that of the token.
func BenchmarkCallLeast(b *testing.B) {
	s := newBench(b)
	token := []byte(strings.TrimPrefix(s.tokens.Get("authorization")[0], "Bearer "))
	signed := token[:bytes.LastIndexByte(token, '.')]
	signature, err := base64.RawURLEncoding.AppendDecode(nil, token[len(signed)+1:])
	if err != nil {
		b.Fatal(err)
	}
	check := func(csr string) error {
		if _, err := publicKey(csr); err != nil {
			return err
		}
		digest := sha256.Sum256(signed)
		return rsa.VerifyPKCS1v15(s.keys.set.keys["k2"].Key.(*rsa.PublicKey), crypto.SHA256, digest[:], signature)
	}
	s.over(b, s.dial(b, s.listenSigning(b, check), nil), s.tokens)
}

func BenchmarkCallCeilingWithHandshake(b *testing.B) {
	s := newBench(b)
	s.connecting(b, s.listenSigning(b, nil))
}

// A token that the published keys cannot decide is reviewed by the API server, here a real one, each time anew.
func BenchmarkServiceByRealTokenReview(b *testing.B) {
	l := connect(b)
	s := l.service()
	s.keys.set = keySet{}
	s.keys.get = func(context.Context, string) ([]byte, error) { return nil, errors.New("no keys are published") }
	for _, limit := range s.limits {
		limit.clock = &running{start: time.Now()}
	}
	node := l.node()
	agent := l.agents[node]
	if agent == nil {
		b.Skip("no agent on the node")
	}
	workload := metadata.Pairs("authorization", "Bearer "+l.token(mesh.CitadelAudience, l.pod("payroll-1", node)), mesh.AgentTokenHeader, "Bearer "+l.token(mesh.CitadelAudience, agent))
	ctx, req := metadata.NewIncomingContext(context.Background(), workload), &securityapi.IstioCertificateRequest{Csr: goodCSR(b)}
	measure(b, func() {
		s.reviewer.mu.Lock()
		clear(s.reviewer.seen)
		s.reviewer.mu.Unlock()
		s.reviewer.budget = newBudget() // a bound there is not what is measured
		if _, err := s.CreateCertificate(ctx, req); err != nil {
			b.Fatal(err)
		}
	})
}

// over makes calls over one connection.
func (s *bench) over(b *testing.B, conn *grpc.ClientConn, md metadata.MD) {
	client := securityapi.NewIstioCertificateServiceClient(conn)
	ctx := metadata.NewOutgoingContext(context.Background(), md)
	measure(b, func() {
		s.forget()
		if _, err := client.CreateCertificate(ctx, s.req); err != nil {
			b.Fatal(err)
		}
	})
}

func (s *bench) connecting(b *testing.B, address string) {
	measure(b, func() {
		conn := s.dial(b, address, s.svid)
		if _, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(context.Background(), s.req); err != nil {
			b.Fatal(err)
		}
		conn.Close()
	})
}

// measure reports the processor time of one operation, of all threads.
func measure(b *testing.B, op func()) {
	op() // connects
	before := processorTime(b)
	b.ResetTimer()
	for range b.N {
		op()
	}
	b.StopTimer()
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// signing answers every CSR that passes its check with one signature and the same certificate.
type signing struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	check  func(csr string) error // may be nil
	key    *ecdsa.PrivateKey
	answer *securityapi.IstioCertificateResponse
}

func (s *signing) CreateCertificate(_ context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	if s.check != nil {
		if err := s.check(req.GetCsr()); err != nil {
			return nil, err
		}
	}
	digest := sha256.Sum256([]byte(req.GetCsr()))
	_, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	return s.answer, err
}

func (s *bench) listenSigning(b *testing.B, check func(csr string) error) string {
	answer, err := s.CreateCertificate(presenting(s.svid.Certificates), s.req)
	if err != nil {
		b.Fatal(err)
	}
	key, err := ca.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	own := s.certificate(b, mesh.Namespace, mesh.CitadelAccount, spiffe.Pod{})
	// Without the bounds of mtls.ServerOptions: a ceiling has none.
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerWithOptionalClientCert(own, trustOf(s.Keeper), mtls.MemberOf("cluster.local")))))
	securityapi.RegisterIstioCertificateServiceServer(server, &signing{check: check, key: key, answer: answer})
	go server.Serve(l)
	b.Cleanup(server.Stop)
	return l.Addr().String()
}
