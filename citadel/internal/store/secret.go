// Package store keeps the CA in Secret bulwark-ca. The Secret is the one place where its state is: every change is one
// update of it, so a Citadel that dies at any point leaves either the old state or the new one.
package store

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Names of the Secret's entries beside those of Istio's cacerts, which hold the CA that signs.
const (
	stateKey       = "state.json"
	nextPrefix     = "next."
	previousPrefix = "previous."
	tokenPrefix    = "token."
)

// state is what state.json holds: everything but keys and certificates.
type state struct {
	Sequence       uint64          `json:"sequence"`
	Origin         rotate.Origin   `json:"origin"`
	NextOrigin     rotate.Origin   `json:"nextOrigin,omitempty"`
	PreviousOrigin rotate.Origin   `json:"previousOrigin,omitempty"`
	Rotation       rotate.Rotation `json:"rotation"`
	Tokens         []tokenKey      `json:"tokens,omitempty"` // oldest first
}

type tokenKey struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// encode returns the Secret's data.
func encode(c rotate.CA) (map[string][]byte, error) {
	data := map[string][]byte{}
	put(data, "", c.Current.Material)
	s := state{Sequence: c.Sequence, Origin: c.Current.Origin, Rotation: c.Rotation}
	if c.Next != nil {
		put(data, nextPrefix, c.Next.Material)
		s.NextOrigin = c.Next.Origin
	}
	if c.Previous != nil {
		put(data, previousPrefix, c.Previous.Material)
		s.PreviousOrigin = c.Previous.Origin
	}
	for _, k := range c.Tokens {
		pem, err := ca.EncodeKey(k.Key)
		if err != nil {
			return nil, err
		}
		data[tokenPrefix+k.ID+".pem"] = pem
		s.Tokens = append(s.Tokens, tokenKey{k.ID, k.Created})
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the state of the CA: %w", err)
	}
	data[stateKey] = raw
	return data, nil
}

func put(data map[string][]byte, prefix string, m ca.Material) {
	data[prefix+mesh.CACertKey], data[prefix+mesh.CAKeyKey] = m.Cert, m.Key
	data[prefix+mesh.CertChainKey], data[prefix+mesh.RootCertKey] = m.Chain, m.Root
}

func get(data map[string][]byte, prefix string) ca.Material {
	return ca.Material{
		Cert: data[prefix+mesh.CACertKey], Key: data[prefix+mesh.CAKeyKey],
		Chain: data[prefix+mesh.CertChainKey], Root: data[prefix+mesh.RootCertKey],
	}
}

// decode reads the Secret's data. A Secret without state.json was made by hand, or by a Citadel that knew of no rotation.
func decode(data map[string][]byte) (rotate.CA, error) {
	c := rotate.CA{Current: rotate.Signer{Material: get(data, ""), Origin: rotate.SelfSigned}, Sequence: 1}
	raw, ok := data[stateKey]
	if !ok {
		return c, nil
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return c, fmt.Errorf("%s: %w", stateKey, err)
	}
	c.Sequence, c.Rotation, c.Current.Origin = s.Sequence, s.Rotation, s.Origin
	if s.NextOrigin != "" {
		c.Next = &rotate.Signer{Material: get(data, nextPrefix), Origin: s.NextOrigin}
	}
	if s.PreviousOrigin != "" {
		c.Previous = &rotate.Signer{Material: get(data, previousPrefix), Origin: s.PreviousOrigin}
	}
	for _, k := range s.Tokens {
		key, err := decodeTokenKey(data[tokenPrefix+k.ID+".pem"])
		if err != nil {
			return c, fmt.Errorf("key %s for JWT-SVIDs: %w", k.ID, err)
		}
		c.Tokens = append(c.Tokens, ca.TokenKey{ID: k.ID, Created: k.Created, Key: key})
	}
	return c, c.Validate()
}

func decodeTokenKey(b []byte) (*ecdsa.PrivateKey, error) {
	if strings.TrimSpace(string(b)) == "" {
		return nil, errors.New("is missing")
	}
	signer, err := ca.DecodeKey(b)
	if err != nil {
		return nil, err
	}
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("is %T, not ECDSA", signer)
	}
	return key, nil
}
