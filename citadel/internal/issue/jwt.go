package issue

import (
	"crypto/rand"
	"fmt"
	"time"
	"unicode"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	tokenTTL = 5 * time.Minute // when the caller asks for none
	// MaxTokenTTL is the longest life of a JWT-SVID: it cannot be withdrawn, only its identity can get no other.
	MaxTokenTTL  = time.Hour
	maxAudiences = 16
	maxAudience  = 512 // bytes
)

// mint signs a JWT-SVID (SPIFFE JWT-SVID, sections 2 and 3). Its times are whole seconds.
func mint(key ca.TokenKey, id spiffe.ID, audience []string, ttl time.Duration, now time.Time) (token string, issued, expires time.Time, err error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key.Key, KeyID: key.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", time.Time{}, time.Time{}, fmt.Errorf("signing a token for %s: %w", id, err)
	}
	issued = now.Truncate(time.Second).UTC()
	expires = issued.Add(ttl)
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: spiffe.TokenIssuer(id.TrustDomain), Subject: id.String(), Audience: audience, IssuedAt: jwt.NewNumericDate(issued), Expiry: jwt.NewNumericDate(expires), ID: rand.Text(),
	}).Serialize()
	if err != nil {
		return "", time.Time{}, time.Time{}, fmt.Errorf("signing a token for %s: %w", id, err)
	}
	return token, issued, expires, nil
}

// checkAudience holds a token to parties that are named: one for everybody could be used against anybody.
func checkAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "a token has one to %d audiences, not %d", maxAudiences, len(audience))
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience {
			return status.Errorf(codes.InvalidArgument, "an audience has one to %d bytes, not %d", maxAudience, len(a))
		}
		for _, r := range a {
			if !unicode.IsPrint(r) {
				return status.Errorf(codes.InvalidArgument, "audience %q has characters that cannot be printed", a)
			}
		}
	}
	return nil
}

// lifeOf returns the life of a token for which so much was asked.
func lifeOf(asked time.Duration) time.Duration {
	if asked <= 0 {
		return tokenTTL
	}
	return max(min(asked, MaxTokenTTL).Truncate(time.Second), time.Second)
}
