package jwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of a key set: what is fetched from a stranger, and sent to every proxy that is to verify tokens by it.
const (
	MaxKeysSize = 256 << 10 // bytes
	MaxKeys     = 64
)

// Keys is a JSON Web Key Set (RFC 7517) of public keys by which the proxies can verify tokens.
type Keys struct {
	Text string // the set, with nothing in it but what verification takes; of sets that mean the same it is the same
	IDs  []string
}

// NoKeys is a set by which no token can be verified.
const NoKeys = `{"keys":[]}`

// ReadKeys reads a set that comes from outside, and leaves out what is of no use to verify tokens or must not be relied on; problems say what, and why. A set of which
// nothing is left is an error.
func ReadKeys(text []byte) (keys Keys, problems []string, err error) {
	if len(text) > MaxKeysSize {
		return Keys{Text: NoKeys}, nil, fmt.Errorf("the key set has %d bytes, at most %d", len(text), MaxKeysSize)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&set); err != nil {
		return Keys{Text: NoKeys}, nil, errors.New("it is not a JSON Web Key Set")
	}
	if len(set.Keys) > MaxKeys {
		return Keys{Text: NoKeys}, nil, fmt.Errorf("the key set has %d keys, at most %d", len(set.Keys), MaxKeys)
	}
	var good jose.JSONWebKeySet
	for i, raw := range set.Keys {
		key, err := readKey(raw)
		if err != nil {
			problems = append(problems, fmt.Sprintf("keys[%d]: %v", i, err))
			continue
		}
		if key == nil {
			continue
		}
		good.Keys = append(good.Keys, *key)
		keys.IDs = append(keys.IDs, key.KeyID)
	}
	if len(good.Keys) == 0 {
		return Keys{Text: NoKeys}, problems, errors.New("the key set has no key by which a token can be verified")
	}
	out, err := json.Marshal(good)
	if err != nil {
		return Keys{Text: NoKeys}, problems, fmt.Errorf("encoding the key set: %w", err)
	}
	keys.Text = string(out)
	return keys, problems, nil
}

// readKey reads a key, nil if it is for something else than to verify tokens, or of a kind that the proxies do not know.
func readKey(raw json.RawMessage) (*jose.JSONWebKey, error) {
	// Certificates and all else that a key may have beside itself are not looked at.
	var about struct {
		Type      string `json:"kty"`
		Use       string `json:"use,omitempty"`
		ID        string `json:"kid,omitempty"`
		Algorithm string `json:"alg,omitempty"`
		Curve     string `json:"crv,omitempty"`
		X         string `json:"x,omitempty"`
		Y         string `json:"y,omitempty"`
		N         string `json:"n,omitempty"`
		E         string `json:"e,omitempty"`
		D         any    `json:"d,omitempty"`
	}
	if err := json.Unmarshal(raw, &about); err != nil {
		return nil, errors.New("it is not a JSON Web Key")
	}
	switch {
	case about.Use != "" && about.Use != "sig":
		return nil, nil
	case about.Type == "oct":
		return nil, errors.New("it is a shared secret (oct): who verifies tokens by it could make them; use keys of RSA, EC or Ed25519")
	case about.D != nil:
		return nil, errors.New("it is a private key; publish its public half")
	}
	bare, err := json.Marshal(about)
	if err != nil {
		return nil, fmt.Errorf("encoding it: %w", err)
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(bare, &key); err != nil || !key.Valid() || !signs(key.Algorithm) {
		return nil, nil
	}
	if err := strong(key.Key); err != nil {
		return nil, err
	}
	if key.Algorithm != "" && !fits(key.Key, key.Algorithm) {
		return nil, fmt.Errorf("alg %q is not one that such a key can be for", key.Algorithm)
	}
	return &jose.JSONWebKey{Key: key.Key, KeyID: key.KeyID, Algorithm: key.Algorithm, Use: key.Use}, nil
}

// strong says why a signature by a key would prove nothing, or be a burden to verify.
func strong(key any) error {
	if k, ok := key.(*rsa.PublicKey); ok {
		switch bits := k.N.BitLen(); {
		case bits < 2048 || bits > 8192:
			return fmt.Errorf("an RSA key of %d bits; 2048 to 8192 are taken", bits)
		case k.E < 3 || k.E%2 == 0:
			return fmt.Errorf("an RSA key with the exponent %d", k.E)
		}
	}
	return nil
}

// signs says whether an algorithm is one of signatures that proxies verify; a key may leave it out.
func signs(algorithm string) bool {
	return algorithm == "" || slices.Contains([]jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}, jose.SignatureAlgorithm(algorithm))
}

// fits says whether an algorithm is one that such a key is for.
func fits(key any, algorithm string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return algorithm[:2] == "RS" || algorithm[:2] == "PS"
	case *ecdsa.PublicKey:
		return algorithm == map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return jose.SignatureAlgorithm(algorithm) == jose.EdDSA
	}
	return false
}
