package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// Material is a CA in PEM, in the parts that Istio's Secret cacerts has, so that a plugged-in intermediate comes in the
// form operators know.
type Material struct {
	Cert  []byte // of the key that signs
	Key   []byte
	Chain []byte // from Cert towards the root; may be empty
	Root  []byte // the trust bundle
}

// Roots returns the certificates of Root.
func (m Material) Roots() ([]*x509.Certificate, error) {
	roots, err := DecodeCerts(m.Root)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return roots, nil
}

// KeyType is a kind of key that Citadel makes.
type KeyType string

// P256 is what everyone understands and what is fast; RSA is for programs that know nothing else.
const (
	P256 KeyType = "ecdsa-p256"
	P384 KeyType = "ecdsa-p384"
	RSA  KeyType = "rsa-3072"
)

// Valid reports whether it is one of the types above.
func (t KeyType) Valid() bool { return t == P256 || t == P384 || t == RSA }

// NewKeyOf returns a key of a type.
func NewKeyOf(t KeyType) (crypto.Signer, error) {
	switch t {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA:
		return rsa.GenerateKey(rand.Reader, 3072)
	default:
		return nil, fmt.Errorf("key type %q; use %s, %s or %s", t, P256, P384, RSA)
	}
}

// NewRoot makes a self-signed root.
func NewRoot(trustDomain string, t KeyType, now time.Time, ttl time.Duration) (Material, error) {
	key, err := NewKeyOf(t)
	if err != nil {
		return Material{}, fmt.Errorf("making the root key: %w", err)
	}
	template, err := rootProfile(trustDomain, now, ttl)
	if err != nil {
		return Material{}, err
	}
	root, err := signRoot(template, trustDomain, key)
	if err != nil {
		return Material{}, fmt.Errorf("root of %s is not signed: %w", trustDomain, err)
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return Material{}, err
	}
	cert := EncodeCerts([]*x509.Certificate{root})
	return Material{Cert: cert, Root: cert, Chain: cert, Key: keyPEM}, nil
}

// EncodeKey returns a private key in PEM (PKCS #8).
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
