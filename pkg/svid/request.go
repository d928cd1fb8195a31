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
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// DefaultCitadel is the address of the CSR service inside a cluster.
var DefaultCitadel = fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.CitadelAccount), mesh.CSRPort)

// requestTimeout bounds one request: a token review and a signature take milliseconds.
const requestTimeout = 10 * time.Second

// connecting spreads the connections that a mesh makes when Citadel returns after an outage. A request meanwhile fails
// at once instead of waiting for the connection: all that waited would be sent in the moment it is there.
var connecting = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 15 * time.Second},
	MinConnectTimeout: 5 * time.Second,
})

// Tokens are what a request is authenticated by.
type Tokens struct {
	Workload string    // bound token of the identity that is asked for
	Expires  time.Time // its end; zero if it is not known
	Agent    string    // the node agent's own token when it asks for a pod, else empty
}

// Valid says whether there is a token that has not ended.
func (t Tokens) Valid(now time.Time) bool {
	return t.Workload != "" && (t.Expires.IsZero() || now.Before(t.Expires))
}

// String keeps tokens out of logs.
func (t Tokens) String() string { return "tokens" }

// GoString does for %#v what String does.
func (t Tokens) GoString() string { return t.String() }

// Requester asks Citadel for SVIDs: by token over one connection, by certificate over one for each call.
type Requester struct {
	address string
	citadel spiffe.ID
	conn    *grpc.ClientConn
	bundle  x509bundle.Source
}

// NewRequester returns a requester for the Citadel at address, whose own SVID is checked against the bundle.
// It connects when it is first used.
func NewRequester(address, trustDomain string, bundle x509bundle.Source) (*Requester, error) {
	citadel, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(address, append(mtls.DialOptions(mtls.ClientWithoutCert(bundle, mtls.OneOf(citadel))), connecting)...)
	if err != nil {
		return nil, fmt.Errorf("Citadel's address %q: %w", address, err)
	}
	return &Requester{address: address, citadel: citadel, conn: conn, bundle: bundle}, nil
}

// Close ends the connection.
func (r *Requester) Close() error { return r.conn.Close() }

// ErrNoToken is why nothing can be asked for: there is no valid token, and no valid SVID in its place.
var ErrNoToken = errors.New("no valid token")

// Obtain returns a new SVID. It asks by the token; by the current SVID, which may be nil, when there is no valid token or
// Citadel says that it cannot have it reviewed: so identities outlive the API server.
func (r *Requester) Obtain(ctx context.Context, tokens Tokens, current *x509svid.SVID, ttl time.Duration, now time.Time) (*x509svid.SVID, error) {
	return tokenFirst(tokens, current, now,
		func(options ...grpc.CallOption) (*x509svid.SVID, error) {
			return r.request(withTokens(ctx, tokens), r.conn, ttl, now, options...)
		},
		func() (*x509svid.SVID, error) { return r.Renew(ctx, current, ttl, now) })
}

// tokenFirst asks by the token, or by the current SVID when the token cannot do.
func tokenFirst[T any](tokens Tokens, current *x509svid.SVID, now time.Time, byToken func(...grpc.CallOption) (T, error), byCertificate func() (T, error)) (T, error) {
	var none T
	var refused error = ErrNoToken
	if tokens.Valid(now) {
		var answered peer.Peer
		got, err := byToken(grpc.Peer(&answered))
		if err == nil || !unreviewed(err, answered) {
			return got, err
		}
		refused = err
	}
	if !usable(current, now) {
		return none, refused
	}
	return byCertificate()
}

// unreviewed says whether Citadel was there and the API server, which reviews tokens, was not. A call that found no
// connection has no peer.
func unreviewed(err error, answered peer.Peer) bool {
	return status.Code(err) == codes.Unavailable && answered.Addr != nil
}

func usable(s *x509svid.SVID, now time.Time) bool {
	return s != nil && now.Before(s.Certificates[0].NotAfter)
}

// Request makes a new P-256 key and returns an SVID for it. A ttl of zero leaves the lifetime to Citadel. What Citadel
// answers is used only if it verifies against the bundle at the time now and fits the key.
func (r *Requester) Request(ctx context.Context, tokens Tokens, ttl time.Duration, now time.Time) (*x509svid.SVID, error) {
	return r.request(withTokens(ctx, tokens), r.conn, ttl, now)
}

// Renew is Request by the current SVID instead of a token. Citadel answers for the same identity and no other.
func (r *Requester) Renew(ctx context.Context, current *x509svid.SVID, ttl time.Duration, now time.Time) (*x509svid.SVID, error) {
	conn, err := r.as(current)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	got, err := r.request(ctx, conn, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("renewing by certificate: %w", err)
	}
	if got.ID != current.ID {
		return nil, fmt.Errorf("Citadel answered a certificate for %s to %s", got.ID, current.ID)
	}
	return got, nil
}

// JWT asks for a JWT-SVID, authenticated as Obtain is. Citadel chooses its lifetime.
func (r *Requester) JWT(ctx context.Context, tokens Tokens, current *x509svid.SVID, audience []string, now time.Time) (string, error) {
	request := &identityv1.TokenRequest{Audience: audience}
	call := func(ctx context.Context, conn *grpc.ClientConn, options ...grpc.CallOption) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		resp, err := identityv1.NewTokensClient(conn).CreateToken(ctx, request, options...)
		if err != nil {
			return "", fmt.Errorf("asking Citadel for a JWT-SVID: %w", err)
		}
		return resp.GetToken(), nil
	}
	return tokenFirst(tokens, current, now,
		func(options ...grpc.CallOption) (string, error) {
			return call(withTokens(ctx, tokens), r.conn, options...)
		},
		func() (string, error) {
			conn, err := r.as(current)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			return call(ctx, conn)
		})
}

// as returns a connection of the SVID's own, for one call. It is used for a few seconds every few hours.
func (r *Requester) as(current *x509svid.SVID) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(r.address, append(mtls.DialOptions(mtls.Client(current, r.bundle, mtls.OneOf(r.citadel))), connecting)...)
	if err != nil {
		return nil, fmt.Errorf("Citadel's address %q: %w", r.address, err)
	}
	return conn, nil
}

func withTokens(ctx context.Context, tokens Tokens) context.Context {
	md := metadata.Pairs("authorization", "Bearer "+tokens.Workload)
	if tokens.Agent != "" {
		md.Set(mesh.AgentTokenHeader, "Bearer "+tokens.Agent)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

func (r *Requester) request(ctx context.Context, conn *grpc.ClientConn, ttl time.Duration, now time.Time, options ...grpc.CallOption) (*x509svid.SVID, error) {
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
	resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(ttl / time.Second),
	}, options...)
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
