// Package issue is the CSR service: it authenticates a caller by its Kubernetes token, or by the certificate that is to be
// renewed, and has the CA issue a certificate or JWT-SVID for exactly that identity. On the wire it is Istio's
// IstioCertificateService, and Bulwark's Tokens.
package issue

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	securityapi "istio.io/api/security/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Policy is what configuration says about certificates.
type Policy struct {
	TrustDomain string
	TTL         time.Duration       // when the caller asks for none
	MaxTTL      time.Duration       // the most a caller gets
	DNSNames    map[string][]string // of the components, by service account
}

// Config is what a Service works with. All of it must be there.
type Config struct {
	Keeper     *ca.Keeper
	Authorizer *Authorizer
	Policy     Policy
	Ready      func() error // while it returns an error nobody gets anything: who is revoked is not known yet
	Denied     func(identity, serial, podUID string) (revocation.Revocation, bool)
	Audit      *auditlog.Log
	Clock      clock.PassiveClock
	Metrics    prometheus.Registerer
	Log        *slog.Logger
}

// Service issues certificates and tokens.
type Service struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	identityv1.UnimplementedTokensServer
	Config
	turns    *turns
	limits   map[string]*limits // by method
	issued   *prometheus.CounterVec
	refused  *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewService returns the service.
func NewService(c Config) *Service {
	limited := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_limited_total", Help: "Requests above a limit, by what it is a limit of."}, []string{"kind"})
	s := &Service{
		Config: c, turns: newTurns(limited),
		limits:   map[string]*limits{auditlog.CreateCertificate: newLimits(c.Clock, limited), auditlog.CreateToken: newLimits(c.Clock, limited)},
		issued:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_issued_total", Help: "Certificates and tokens issued, by method and what the caller has shown."}, []string{"method", "by"}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_refused_total", Help: "Requests for certificates and tokens that were refused, by method and gRPC code."}, []string{"method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "bulwark_citadel_request_duration_seconds", Help: "Time to answer a request for a certificate or token.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}, []string{"method"}),
	}
	c.Metrics.MustRegister(limited, s.issued, s.refused, s.duration)
	return s
}

// CreateCertificate implements IstioCertificateService.
func (s *Service) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	resp := &securityapi.IstioCertificateResponse{}
	err := s.answer(ctx, auditlog.CreateCertificate, func(id spiffe.ID, c Caller) (serial string, err error) {
		key, err := publicKey(req.GetCsr())
		if err != nil {
			return "", err
		}
		signer := s.Keeper.Current().Signer
		ttl := time.Duration(min(req.GetValidityDuration(), int64(s.Policy.MaxTTL/time.Second))) * time.Second
		chain, err := s.certify(signer, ca.Request{ID: id, PublicKey: key, TTL: ttl, Pod: spiffe.Pod{Name: c.PodName, UID: c.PodUID, Node: c.NodeName}})
		if err != nil {
			return "", err
		}
		resp.CertChain = append([]string{string(ca.EncodeCerts(chain[:1]))}, signer.Above()...)
		return chain[0].SerialNumber.Text(16), nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// CreateToken implements Tokens.
func (s *Service) CreateToken(ctx context.Context, req *identityv1.TokenRequest) (*identityv1.TokenResponse, error) {
	resp := &identityv1.TokenResponse{}
	err := s.answer(ctx, auditlog.CreateToken, func(id spiffe.ID, _ Caller) (string, error) {
		if err := checkAudience(req.GetAudience()); err != nil {
			return "", err
		}
		keys := s.Keeper.Current().Tokens
		if keys == nil {
			return "", status.Error(codes.Unavailable, "there is no key for tokens yet")
		}
		token, issued, expires, err := mint(keys.Signer, id, req.GetAudience(), lifeOf(req.GetTtl().AsDuration()), s.Clock.Now())
		if err != nil {
			return "", err
		}
		resp.Token, resp.Issued, resp.Expires = token, timestamppb.New(issued), timestamppb.New(expires)
		return "", nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// answer authenticates a call, has it answered for the identity it proves, and records the outcome. Answering returns the
// serial number of the certificate, if it made one.
func (s *Service) answer(ctx context.Context, method string, issue func(spiffe.ID, Caller) (string, error)) error {
	began := s.Clock.Now()
	defer func() { s.duration.WithLabelValues(method).Observe(s.Clock.Since(began).Seconds()) }()
	address, from := callerAddress(ctx)
	d := auditlog.Decision{Method: method, Protocol: "gRPC", Peer: address}
	caller, err := s.serve(ctx, method, from, &d, issue)
	if err != nil {
		s.refuse(d, caller, err)
		return outward(err)
	}
	by := "token"
	if caller.Serial != "" {
		by = "certificate"
	}
	s.issued.WithLabelValues(method, by).Inc()
	s.Audit.Issued(d)
	s.Log.Info("issued", "method", method, "by", by, "identity", d.Identity, "serial", d.Serial, "pod", caller.PodName, "podUID", caller.PodUID, "node", caller.NodeName)
	return nil
}

// callerAddress returns where a call comes from, with its port and without; nothing if there is no connection.
func callerAddress(ctx context.Context) (address, host string) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return "", ""
	}
	address = p.Addr.String()
	return address, mtls.Host(address)
}

func (s *Service) serve(ctx context.Context, method, from string, d *auditlog.Decision, issue func(spiffe.ID, Caller) (string, error)) (Caller, error) {
	done, err := s.turns.take(ctx, from)
	if err != nil {
		return Caller{}, err
	}
	defer done()
	if err := s.Ready(); err != nil {
		return Caller{}, status.Errorf(codes.Unavailable, "Citadel is not ready: %v", err)
	}
	who, err := s.Authorizer.identify(ctx)
	if who.Namespace == "" {
		return Caller{}, err
	}
	id, idErr := spiffe.New(s.Policy.TrustDomain, who.Namespace, who.ServiceAccount)
	d.Identity, d.Serial, d.Subject = id.String(), who.Serial, subject(id, who.Caller)
	switch {
	case err != nil:
		return who.Caller, err
	case idErr != nil:
		return who.Caller, status.Errorf(codes.PermissionDenied, "caller has no identity: %v", idErr)
	}
	if err := s.allowed(id, who); err != nil {
		return who.Caller, err
	}
	if err := s.limits[method].take(d.Identity, who.NodeName); err != nil {
		return who.Caller, err
	}
	if err := s.Authorizer.present(ctx, who); err != nil {
		return who.Caller, err
	}
	serial, err := issue(id, who.Caller)
	if err != nil {
		return who.Caller, err
	}
	d.Serial = serial
	return who.Caller, nil
}

// allowed refuses who is revoked, and what a revoked agent asks for.
func (s *Service) allowed(id spiffe.ID, who parties) error {
	if r, denied := s.Denied(id.String(), who.Serial, who.PodUID); denied {
		return status.Errorf(codes.PermissionDenied, "%s is revoked (%s): %s", id, r.Name, r.Reason)
	}
	if who.agent == nil {
		return nil
	}
	agent, err := spiffe.New(s.Policy.TrustDomain, who.agent.Namespace, who.agent.ServiceAccount)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "agent has no identity: %v", err)
	}
	if r, denied := s.Denied(agent.String(), "", who.agent.PodUID); denied {
		return status.Errorf(codes.PermissionDenied, "the agent %s is revoked (%s): %s", who.agent.PodName, r.Name, r.Reason)
	}
	return nil
}

func subject(id spiffe.ID, c Caller) *telemetryv1.Workload {
	return &telemetryv1.Workload{Node: c.NodeName, Namespace: c.Namespace, Pod: c.PodName, PodUid: c.PodUID, ServiceAccount: c.ServiceAccount, Identity: id.String()}
}

// refuse records a refusal. A flood of them is in the log as in the audit trail: bounded.
func (s *Service) refuse(d auditlog.Decision, c Caller, err error) {
	code := status.Code(outward(err)).String()
	s.refused.WithLabelValues(d.Method, code).Inc()
	reason := status.Convert(err).Message()
	if s.Audit.Refused(d, reason) {
		s.Log.Warn("refused", "method", d.Method, "code", code, "reason", reason, "peer", d.Peer,
			"namespace", c.Namespace, "serviceAccount", c.ServiceAccount, "pod", c.PodName, "node", c.NodeName)
	}
}

// outward is what the caller is told: nothing about the inside of Citadel.
func outward(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, "nothing could be issued; Citadel's log says why")
}

// Issue certifies one of the components for no pod. Citadel uses it for itself.
func (s *Service) Issue(id spiffe.ID, key crypto.PublicKey, ttl time.Duration) ([]*x509.Certificate, error) {
	chain, err := s.certify(s.Keeper.Current().Signer, ca.Request{ID: id, PublicKey: key, TTL: ttl})
	if err != nil {
		return nil, err
	}
	s.Audit.Issued(auditlog.Decision{Method: auditlog.CreateCertificate, Identity: id.String(), Serial: chain[0].SerialNumber.Text(16)})
	return chain, nil
}

// certify issues by the policy.
func (s *Service) certify(signer *ca.Authority, r ca.Request) ([]*x509.Certificate, error) {
	if r.TTL <= 0 {
		r.TTL = s.Policy.TTL
	}
	r.TTL = min(r.TTL, s.Policy.MaxTTL)
	if r.ID.Namespace == mesh.Namespace {
		r.DNSNames = s.Policy.DNSNames[r.ID.ServiceAccount]
	}
	return signer.Issue(r)
}
