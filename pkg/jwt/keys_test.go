package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

func public(t testing.TB, key any, id, algorithm, use string) string {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: id, Algorithm: algorithm, Use: use})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestKeysThatProveNothingAreLeftOut(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := func(bits int) *big.Int { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1) }
	rsaKey := func(bits, exponent int) *rsa.PublicKey { return &rsa.PublicKey{N: modulus(bits), E: exponent} }
	private, err := json.Marshal(jose.JSONWebKey{Key: curve, KeyID: "p"})
	if err != nil {
		t.Fatal(err)
	}
	good := public(t, &curve.PublicKey, "good", "ES256", "sig")
	for name, c := range map[string]struct {
		key     string
		taken   bool
		problem string
	}{
		"EC":                          {public(t, &curve.PublicKey, "k", "ES256", "sig"), true, ""},
		"EC without alg and use":      {public(t, &curve.PublicKey, "k", "", ""), true, ""},
		"EC without an ID":            {public(t, &curve.PublicKey, "", "", ""), true, ""},
		"Ed25519":                     {public(t, edwards, "k", "EdDSA", "sig"), true, ""},
		"RSA of 2048 bits":            {public(t, rsaKey(2048, 65537), "k", "", ""), true, ""},
		"RSA for PS512":               {public(t, rsaKey(3072, 3), "k", "PS512", ""), true, ""},
		"RSA of 1024 bits":            {public(t, rsaKey(1024, 65537), "k", "", ""), false, "1024 bits"},
		"RSA of 16384 bits":           {public(t, rsaKey(16384, 65537), "k", "", ""), false, "16384 bits"},
		"RSA with the exponent 1":     {public(t, rsaKey(2048, 1), "k", "", ""), false, "exponent 1"},
		"RSA with an even exponent":   {public(t, rsaKey(2048, 65536), "k", "", ""), false, "exponent 65536"},
		"a secret":                    {`{"kty":"oct","k":"c2VjcmV0","kid":"k"}`, false, "shared secret"},
		"a private key":               {string(private), false, "private key"},
		"EC for RS256":                {public(t, &curve.PublicKey, "k", "RS256", ""), false, `alg "RS256"`},
		"EC for ES384":                {public(t, &curve.PublicKey, "k", "ES384", ""), false, `alg "ES384"`},
		"RSA for HS256":               {public(t, rsaKey(2048, 65537), "k", "HS256", ""), false, ""},
		"RSA for encryption":          {public(t, rsaKey(2048, 65537), "k", "RSA-OAEP", ""), false, ""},
		"a key that is for encrypion": {public(t, rsaKey(2048, 65537), "k", "", "enc"), false, ""},
		"a kind that nobody knows":    {`{"kty":"PQ","x":"AAAA"}`, false, ""},
		"a point off its curve":       {`{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}`, false, ""},
		"no key":                      {`7`, false, "not a JSON Web Key"},
		"null":                        {`null`, false, ""},
	} {
		keys, problems, err := ReadKeys([]byte(set(good, c.key)))
		if err != nil || (len(keys.IDs) == 2) != c.taken || keys.IDs[0] != "good" {
			t.Errorf("%s: keys %q, %v", name, keys.IDs, err)
		}
		if said := strings.Join(problems, "; "); !strings.Contains(said, c.problem) || c.problem == "" && said != "" {
			t.Errorf("%s: problems %q, want %q", name, said, c.problem)
		}
		if strings.Contains(keys.Text, `"d"`) || strings.Contains(keys.Text, `"k"`+":") {
			t.Errorf("%s: a secret is handed on: %s", name, keys.Text)
		}
		alone, _, err := ReadKeys([]byte(set(c.key)))
		if c.taken != (err == nil) || !c.taken && alone.Text != NoKeys {
			t.Errorf("%s alone: %s, %v", name, alone.Text, err)
		}
	}
	many := make([]string, MaxKeys+1)
	for i := range many {
		many[i] = public(t, &curve.PublicKey, fmt.Sprint(i), "", "")
	}
	for name, text := range map[string]string{"many keys": set(many...), "a long text": set(good) + strings.Repeat(" ", MaxKeysSize), "a list": "[" + good + "]", "nothing": "", "deep": strings.Repeat("[", 100000)} {
		if keys, _, err := ReadKeys([]byte(text)); err == nil || keys.Text != NoKeys {
			t.Errorf("%s: %s, %v", name, keys.Text, err)
		}
	}
	x5c := strings.Replace(good, "{", `{"x5c":["MII"],"x5t":"AAAA","unknown":{"a":1},`, 1)
	if first, _, err := ReadKeys([]byte(set(x5c))); err != nil || first.Text != mustRead(t, good) {
		t.Errorf("what verification does not take is handed on: %s, %v", first.Text, err)
	}
}

func mustRead(t *testing.T, key string) string {
	t.Helper()
	keys, _, err := ReadKeys([]byte(set(key)))
	if err != nil {
		t.Fatal(err)
	}
	return keys.Text
}

func FuzzReadKeys(f *testing.F) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(set(public(f, &curve.PublicKey, "a", "ES256", "sig"))))
	f.Add([]byte(set(`{"kty":"oct","k":"AA"}`, `{"kty":"RSA","n":"AQAB","e":"AQAB"}`)))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, _, err := ReadKeys(text)
		if err != nil {
			if keys.Text != NoKeys {
				t.Fatalf("an error, and keys: %s", keys.Text)
			}
			return
		}
		again, problems, err := ReadKeys([]byte(keys.Text))
		if err != nil || len(problems) > 0 || again.Text != keys.Text {
			t.Fatalf("%s is read as %s, %v, %v", keys.Text, again.Text, problems, err)
		}
	})
}
