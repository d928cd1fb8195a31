package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"
)

// TokenKey is a key that signs JWT-SVIDs (ES256).
type TokenKey struct {
	ID      string // the JWK's kid
	Key     *ecdsa.PrivateKey
	Created time.Time
}

// NewTokenKey makes a key whose ID is the hash of its public half.
func NewTokenKey(now time.Time) (TokenKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return TokenKey{}, fmt.Errorf("making a key for JWT-SVIDs: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return TokenKey{}, fmt.Errorf("encoding the key for JWT-SVIDs: %w", err)
	}
	sum := sha256.Sum256(der)
	return TokenKey{ID: base64.RawURLEncoding.EncodeToString(sum[:15]), Key: key, Created: now.Round(0).UTC()}, nil
}

// TokenKeys are the keys for JWT-SVIDs: all are published, one signs. A key is published for a while before it signs, so
// that verifiers have it, and after, until the last token it signed has ended.
type TokenKeys struct {
	Signer    TokenKey
	Published []TokenKey // with Signer among them
}
