package svidtest

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

const tokenKeyID = "test-key"

// Document returns the SPIFFE bundle of this CA, of its key for tokens, and of other roots.
func (c *CA) Document(sequence uint64, others ...*x509.Certificate) []byte {
	c.t.Helper()
	b := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(c.TrustDomain), append([]*x509.Certificate{c.Cert}, others...))
	b.SetSequenceNumber(sequence)
	if err := b.AddJWTAuthority(tokenKeyID, c.tokenKey.Public()); err != nil {
		c.t.Fatal(err)
	}
	document, err := b.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	return document
}

// Message returns what Citadel's stream says when this CA signs.
func (c *CA) Message(sequence uint64, others ...*x509.Certificate) *identityv1.Bundle {
	c.t.Helper()
	return &identityv1.Bundle{Sequence: sequence, Document: c.Document(sequence, others...), Issuer: c.Cert.SubjectKeyId, RenewWithin: durationpb.New(0)}
}

// Token signs a JWT-SVID.
func (c *CA) Token(subject string, audience []string, expires time.Time) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.tokenKey, KeyID: tokenKeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(jwt.Claims{
		Subject: subject, Audience: audience, Expiry: jwt.NewNumericDate(expires), IssuedAt: jwt.NewNumericDate(time.Now()),
	}).Serialize()
}

// CreateToken implements Tokens.
func (s *Citadel) CreateToken(ctx context.Context, req *identityv1.TokenRequest) (*identityv1.TokenResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens++
	id, err := s.caller(ctx, md)
	if err != nil {
		return nil, err
	}
	expires := time.Now().Add(s.life)
	token, err := s.ca.Token(id.String(), req.GetAudience(), expires)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &identityv1.TokenResponse{Token: token, Issued: timestamppb.Now(), Expires: timestamppb.New(expires)}, nil
}

// Tokens returns how often a token was asked for.
func (s *Citadel) Tokens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens
}

// Publish sends a bundle on every stream; nil ends them and refuses others.
func (s *Citadel) Publish(b *identityv1.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundle = b
	close(s.changed)
	s.changed = make(chan struct{})
}

// SignBy has another CA sign from now on.
func (s *Citadel) SignBy(c *CA) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ca, s.roots = c, append(s.roots, c.Cert)
}

// Holdings returns the reports so far.
func (s *Citadel) Holdings() []*identityv1.Holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*identityv1.Holding(nil), s.holdings...)
}

// Watch implements TrustBundles.
func (s *Citadel) Watch(rpc identityv1.TrustBundles_WatchServer) error {
	if _, err := mtls.PeerID(rpc.Context()); err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	go func() { // ends with the stream
		for {
			h, err := rpc.Recv()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.holdings = append(s.holdings, h)
			s.mu.Unlock()
		}
	}()
	for {
		s.mu.Lock()
		b, changed := s.bundle, s.changed
		s.mu.Unlock()
		if b == nil {
			return status.Error(codes.Unavailable, "this Citadel does not lead")
		}
		if err := rpc.Send(b); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-rpc.Context().Done():
			return nil
		}
	}
}
