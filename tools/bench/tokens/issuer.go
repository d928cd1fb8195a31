// Package tokens makes what benchmarks need of an identity provider: keys, and a token that they verify.
package tokens

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer is whose tokens are verified.
type Issuer struct {
	Name  string
	Keys  string // a JSON Web Key Set (RFC 7517)
	Token string // good for a day
}

// New makes a key for RS256 (of 2048 bits) or ES256, and one token as an identity provider would, with a dozen claims.
func New(algorithm jose.SignatureAlgorithm) (i Issuer, err error) {
	var private, public any
	switch algorithm {
	case jose.RS256:
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return i, fmt.Errorf("making a key: %w", err)
		}
		private, public = key, key.Public()
	case jose.ES256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return i, fmt.Errorf("making a key: %w", err)
		}
		private, public = key, key.Public()
	default:
		return i, fmt.Errorf("no key is made for %s", algorithm)
	}
	const kid = "1"
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: kid, Algorithm: string(algorithm), Use: "sig"}}})
	if err != nil {
		return i, fmt.Errorf("encoding a key: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: private, KeyID: kid}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return i, fmt.Errorf("a signer of %s: %w", algorithm, err)
	}
	now := time.Now()
	i = Issuer{Name: "https://issuer.bench.example", Keys: string(keys)}
	i.Token, err = jwt.Signed(signer).Claims(map[string]any{
		"iss": i.Name, "sub": "9b1f6c34-6d1a-4c52-9a5e-1d7c8c7a6f10", "aud": []string{"accounts", "reports"}, "azp": "console", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
		"jti": "4c3c2f52-0f64-4f0d-8a1a-7b1d9e1c2f3a", "scope": "openid profile email", "name": "A. Reader", "email": "reader@bench.example", "groups": []string{"readers", "auditors"},
	}).Serialize()
	if err != nil {
		return i, fmt.Errorf("signing a token: %w", err)
	}
	return i, nil
}
