// Package svid obtains X.509-SVIDs from Citadel and renews them: for a component itself (Source), and for the node agent
// on behalf of the pods of its node (Requester, Rotator). Private keys are made here and stay in memory.
package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// DefaultCitadel is the address of the CSR service inside a cluster.
var DefaultCitadel = fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.CitadelAccount), mesh.CSRPort)

// requestTimeout bounds one request: a token review and a signature take milliseconds.
const requestTimeout = 10 * time.Second

// Tokens are what a request is authenticated by.
type Tokens struct {
	Workload string // bound token of the identity that is asked for
	Agent    string // the node agent's own token when it asks for a pod, else empty
}

// Requester asks Citadel for SVIDs over one connection.
type Requester struct {
	conn   *grpc.ClientConn
	client securityapi.IstioCertificateServiceClient
	bundle x509bundle.Source
}

// NewRequester returns a requester for the Citadel at address, whose own SVID is checked against the bundle.
// It connects when it is first used.
func NewRequester(address, trustDomain string, bundle x509bundle.Source) (*Requester, error) {
	citadel, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(address, mtls.DialOptions(mtls.ClientWithoutCert(bundle, mtls.OneOf(citadel)))...)
	if err != nil {
		return nil, fmt.Errorf("Citadel's address %q: %w", address, err)
	}
	return &Requester{conn: conn, client: securityapi.NewIstioCertificateServiceClient(conn), bundle: bundle}, nil
}

// Close ends the connection.
func (r *Requester) Close() error { return r.conn.Close() }

// Request makes a new P-256 key and returns an SVID for it. A ttl of zero leaves the lifetime to Citadel. What Citadel
// answers is used only if it verifies against the bundle at the time now and fits the key.
func (r *Requester) Request(ctx context.Context, tokens Tokens, ttl time.Duration, now time.Time) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a CSR: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	md := metadata.Pairs("authorization", "Bearer "+tokens.Workload)
	if tokens.Agent != "" {
		md.Set(mesh.AgentTokenHeader, "Bearer "+tokens.Agent)
	}
	resp, err := r.client.CreateCertificate(metadata.NewOutgoingContext(ctx, md), &securityapi.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(ttl / time.Second),
	}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("asking Citadel for a certificate: %w", err)
	}
	return assemble(resp.GetCertChain(), key, r.bundle, now)
}

// assemble checks the chain Citadel answered (leaf first, root last) and joins it with the key.
func assemble(chain []string, key crypto.Signer, bundle x509bundle.Source, now time.Time) (*x509svid.SVID, error) {
	var certs []*x509.Certificate
	for i, entry := range chain {
		block, rest := pem.Decode([]byte(entry))
		if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
			return nil, fmt.Errorf("entry %d of Citadel's chain is not one PEM certificate", i)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("entry %d of Citadel's chain: %w", i, err)
		}
		certs = append(certs, cert)
	}
	// Peers hold the root already; sending it would only make handshakes larger.
	if n := len(certs); n > 1 && certs[n-1].CheckSignatureFrom(certs[n-1]) == nil {
		certs = certs[:n-1]
	}
	if len(certs) == 0 {
		return nil, errors.New("Citadel answered an empty chain")
	}
	id, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, fmt.Errorf("Citadel's answer does not verify: %w", err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certs[0].PublicKey) {
		return nil, errors.New("Citadel's answer is for another key")
	}
	return &x509svid.SVID{ID: id, Certificates: certs, PrivateKey: key}, nil
}
