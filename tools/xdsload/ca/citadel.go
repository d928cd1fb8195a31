package ca

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Citadel stands in for the CSR service, on loopback and for one caller: the Pilot under test, which has the token.
type Citadel struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	Address string
	Token   string
	ca      *CA
	server  *grpc.Server
}

// Serve starts the service.
func (c *CA) Serve() (*Citadel, error) {
	own, err := c.Issue(mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("CSR service: %w", err)
	}
	s := &Citadel{Address: l.Addr().String(), Token: rand.Text(), ca: c}
	s.server = grpc.NewServer(mtls.ServerOptions(mtls.ServerWithoutClientCert(own), mtls.Limits{})...)
	securityapi.RegisterIstioCertificateServiceServer(s.server, s)
	go func() { _ = s.server.Serve(l) }() // ends with Stop
	return s, nil
}

// Stop ends the service.
func (s *Citadel) Stop() { s.server.Stop() }

// CreateCertificate signs Pilot's identity.
func (s *Citadel) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	given := md.Get("authorization")
	if len(given) != 1 || subtle.ConstantTimeCompare([]byte(given[0]), []byte("Bearer "+s.Token)) != 1 {
		return nil, status.Error(codes.Unauthenticated, "wrong token")
	}
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "CSR is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	id, err := spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return nil, err
	}
	cert, err := s.ca.sign(id, spiffe.Pod{}, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	return &securityapi.IstioCertificateResponse{CertChain: []string{encode(cert), encode(s.ca.cert)}}, nil
}

func encode(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
