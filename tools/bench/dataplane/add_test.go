package dataplane

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/bulwark-mesh/bulwark/tools/bench/tokens"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// What adds one thing comes behind what it is compared with, and each once.
func TestAdditionsComeAfterWhatTheyAreComparedWith(t *testing.T) {
	list, err := added([]string{"es256", "custom", "es256-token", "rs256", "es256"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range list {
		names = append(names, a.name)
	}
	if got, want := strings.Join(names, " "), "es256-token es256 custom rs256-token rs256"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := added([]string{"rs512"}); err == nil || !strings.Contains(err.Error(), "these are:\n  rs256-token") {
		t.Errorf("%v", err)
	}
}

// A token is what its issuer's keys verify, and a forged one is not, though it reads the same.
func TestForgedTokensAreOtherwiseTheSame(t *testing.T) {
	for _, algorithm := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256} {
		i, err := tokens.New(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		var keys jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(i.Keys), &keys); err != nil {
			t.Fatal(err)
		}
		target := traffic.Target{Token: i.Token}
		forged(&target)
		for token, good := range map[string]bool{i.Token: true, target.Token: false} {
			parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{algorithm})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := parsed.Claims(keys.Keys[0].Key, &claims); (err == nil) != good || good && claims.Issuer != i.Name {
				t.Errorf("%s: %v, good %v", algorithm, err, good)
			}
		}
	}
}
