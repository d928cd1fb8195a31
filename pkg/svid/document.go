package svid

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What a bundle document may cost. A mesh in the middle of a root rotation has a handful of keys.
const (
	maxDocument = 1 << 20 // bytes
	maxKeys     = 100
)

// ParseDocument reads a trust bundle (SPIFFE Trust Domain and Bundle, section 4). It demands a sequence number and an
// X.509 authority, and refuses what is no public key of a kind that signs SVIDs: a symmetric key among them would let
// whoever reads the bundle sign.
func ParseDocument(td spiffeid.TrustDomain, document []byte) (*spiffebundle.Bundle, error) {
	if len(document) > maxDocument {
		return nil, fmt.Errorf("trust bundle is longer than %d bytes", maxDocument)
	}
	var outline struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &outline); err != nil {
		return nil, fmt.Errorf("reading the trust bundle: %w", err)
	}
	if len(outline.Keys) > maxKeys {
		return nil, fmt.Errorf("trust bundle has %d keys, more than %d", len(outline.Keys), maxKeys)
	}
	b, err := spiffebundle.Parse(td, document)
	if err != nil {
		return nil, fmt.Errorf("reading the trust bundle: %w", err)
	}
	return b, checkDocument(b)
}

func checkDocument(b *spiffebundle.Bundle) error {
	if _, ok := b.SequenceNumber(); !ok {
		return errors.New("trust bundle has no sequence number")
	}
	roots := b.X509Authorities()
	if len(roots) == 0 {
		return errors.New("trust bundle has no X.509 authority")
	}
	for _, c := range roots {
		if !c.IsCA {
			return fmt.Errorf("X.509 authority %q of the trust bundle is no CA certificate", c.Subject)
		}
	}
	for id, key := range b.JWTAuthorities() {
		switch key.(type) {
		case *ecdsa.PublicKey, *rsa.PublicKey: // what JWT-SVID section 3 allows signs with one of these
		default:
			return fmt.Errorf("JWT authority %q of the trust bundle is a %T", id, key)
		}
	}
	return nil
}
