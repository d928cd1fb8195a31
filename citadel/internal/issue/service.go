// Package issue is the CSR service: it authenticates a caller by its Kubernetes token and has the CA issue a certificate
// for exactly that identity. On the wire it is Istio's IstioCertificateService.
package issue

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Policy is what configuration says about certificates.
type Policy struct {
	TrustDomain string
	TTL         time.Duration       // when the caller asks for none
	MaxTTL      time.Duration       // the most a caller gets
	DNSNames    map[string][]string // of the components, by service account
}

// Service issues certificates.
type Service struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	authority  *ca.Keeper
	authorizer *Authorizer
	policy     Policy
	slots      chan struct{}
	log        *slog.Logger
	issued     prometheus.Counter
	refused    *prometheus.CounterVec
	duration   prometheus.Histogram
}

// concurrent bounds the calls that are worked on; those above it wait until their deadline. Each holds a token review
// against the API server.
const concurrent = 64

// NewService returns the service; its metrics go to the registerer.
func NewService(authority *ca.Keeper, authorizer *Authorizer, p Policy, reg prometheus.Registerer, log *slog.Logger) *Service {
	s := &Service{
		authority: authority, authorizer: authorizer, policy: p, slots: make(chan struct{}, concurrent), log: log,
		issued:   prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_citadel_certificates_issued_total", Help: "Certificates issued to CSRs."}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_csr_refused_total", Help: "CSRs refused, by gRPC code."}, []string{"code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "bulwark_citadel_csr_duration_seconds", Help: "Time to answer a CSR.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}),
	}
	reg.MustRegister(s.issued, s.refused, s.duration)
	return s
}

// CreateCertificate implements IstioCertificateService.
func (s *Service) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	start := time.Now()
	defer func() { s.duration.Observe(time.Since(start).Seconds()) }()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		s.refused.WithLabelValues(codes.ResourceExhausted.String()).Inc()
		return nil, status.Error(codes.ResourceExhausted, "Citadel has too many requests")
	}
	caller, chain, err := s.create(ctx, req)
	if err != nil {
		s.refused.WithLabelValues(status.Code(err).String()).Inc()
		s.log.Warn("CSR refused", "code", status.Code(err).String(), "reason", status.Convert(err).Message(),
			"namespace", caller.Namespace, "serviceAccount", caller.ServiceAccount, "pod", caller.PodName, "node", caller.NodeName)
		return nil, err
	}
	s.issued.Inc()
	s.log.Info("certificate issued", "identity", chain[0].URIs[0].String(), "serial", chain[0].SerialNumber.Text(16), "notAfter", chain[0].NotAfter,
		"pod", caller.PodName, "podUID", caller.PodUID, "node", caller.NodeName)
	resp := &securityapi.IstioCertificateResponse{}
	for _, c := range chain {
		resp.CertChain = append(resp.CertChain, string(ca.EncodeCerts([]*x509.Certificate{c})))
	}
	resp.CertChain = append(resp.CertChain, string(ca.EncodeCerts(s.authority.Current().Signer.Roots()[:1])))
	return resp, nil
}

func (s *Service) create(ctx context.Context, req *securityapi.IstioCertificateRequest) (Caller, []*x509.Certificate, error) {
	caller, err := s.authorizer.Authorize(ctx)
	if err != nil {
		return caller, nil, err
	}
	key, err := publicKey(req.GetCsr())
	if err != nil {
		return caller, nil, err
	}
	id, err := spiffe.New(s.policy.TrustDomain, caller.Namespace, caller.ServiceAccount)
	if err != nil {
		return caller, nil, status.Errorf(codes.PermissionDenied, "caller has no identity: %v", err)
	}
	chain, err := s.Issue(id, key, time.Duration(min(req.GetValidityDuration(), int64(s.policy.MaxTTL/time.Second)))*time.Second)
	if err != nil {
		s.log.Error("issuing", "identity", id.String(), "error", err)
		return caller, nil, status.Errorf(codes.Internal, "no certificate could be issued for %s", id)
	}
	return caller, chain, nil
}

// Issue certifies an identity by the policy. Citadel uses it for itself.
func (s *Service) Issue(id spiffe.ID, key crypto.PublicKey, ttl time.Duration) ([]*x509.Certificate, error) {
	if ttl <= 0 {
		ttl = s.policy.TTL
	}
	r := ca.Request{ID: id, PublicKey: key, TTL: min(ttl, s.policy.MaxTTL)}
	if id.Namespace == mesh.Namespace {
		r.DNSNames = s.policy.DNSNames[id.ServiceAccount]
	}
	return s.authority.Current().Signer.Issue(r)
}
