package push

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// signer signs tokens, of whatever issuer.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, key}
}

func (s *signer) token(claims map[string]any) string {
	s.t.Helper()
	all := map[string]any{"exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	payload, err := json.Marshal(all)
	if err != nil {
		s.t.Fatal(err)
	}
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", "a"))
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := by.Sign(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// believing is a RequestAuthentication for the server, by which tokens of issuers are verified.
func (s *signer) believing(issuers ...string) registry.Event {
	s.t.Helper()
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: "a", Algorithm: string(jose.ES256)}}})
	if err != nil {
		s.t.Fatal(err)
	}
	keys, problems, err := jwt.ReadKeys(text)
	if err != nil || len(problems) > 0 {
		s.t.Fatal(problems, err)
	}
	r := &registry.RequestAuth{ID: "shop/tokens", Namespace: "shop", Policy: jwt.Policy{Meta: authz.Meta{Namespace: "shop", Name: "tokens"}, Selector: map[string]string{"app": "web"}}}
	for _, i := range issuers {
		r.Rules = append(r.Rules, jwt.Rule{Issuer: i, Keys: keys.Text})
	}
	return registry.Event{Kind: registry.RequestAuths, ID: r.ID, Object: r}
}

func claimIs(key string, kind authz.Kind, value string) authz.Clause {
	return authz.Clause{Attribute: authz.Claim, Key: key, Values: []authz.Match{{Kind: kind, Value: value}}}
}

var anyToken = policyFor(authz.Allow, authz.Clauses{clause(authz.RequestPrincipal, authz.Present, "")})

func streamsOf(o *opener) map[string]func(spiffe.ID) (io.Reader, error) {
	return map[string]func(spiffe.ID) (io.Reader, error){"WebSocket": o.websocket, "SSE over HTTP/1.1": o.stream("HTTP/1.1"), "a stream of HTTP/2": o.stream("HTTP/2.0")}
}

// Two clients have streams open by tokens of two kinds. A policy comes that forbids what one of them says: its streams end within five seconds, and none of the other's does.
func TestWhatAPolicyForbidsOfTokensEnds(t *testing.T) {
	mine, theirs := account("shop", "client"), account("bank", "other")
	m, o := served(t, streaming(t), protocol.HTTP, mine, theirs)
	s := newSigner(t)
	const issuer = "https://issuer.example/a"
	o.tokens = map[spiffe.ID]string{
		mine: s.token(map[string]any{"iss": issuer, "sub": "ann", "role": "reader", "groups": []any{"staff", "ops"}, "realm": map[string]any{"roles": []any{"x", 7}},
			"level": 42, "admin": true, "scope": "read write", "aud": []any{"web", "cli"}, "azp": "cli", "text": "engineer", "none": nil}),
		theirs: s.token(map[string]any{"iss": issuer, "sub": "bob", "role": "writer", "groups": []any{"staff"}, "realm": map[string]any{"roles": "y"},
			"level": 43.5, "admin": false, "scope": "read", "aud": "web", "azp": "app", "text": "employee", "none": map[string]any{}}),
	}
	forbids := map[string]registry.Event{}
	for what, c := range map[string]authz.Clause{
		"a claim": claimIs("[role]", authz.Exact, "reader"), "a beginning": claimIs("[role]", authz.Prefix, "re"), "an end": claimIs("[text]", authz.Suffix, "er"),
		"an element": claimIs("[groups]", authz.Exact, "ops"), "a claim within a claim": claimIs("[realm][roles]", authz.Prefix, "x"), "a number": claimIs("[level]", authz.Exact, "4.2e1"),
		"a number in a list": claimIs("[realm][roles]", authz.Exact, "7"), "true": claimIs("[admin]", authz.Exact, "true"), "a scope": claimIs("[scope]", authz.Exact, "write"),
		"an audience": claimIs("[aud]", authz.Exact, "cli"), "a presenter": claimIs("[azp]", authz.Exact, "cli"), "a principal": clause(authz.RequestPrincipal, authz.Exact, issuer+"/ann"),
		"all other principals": {Attribute: authz.RequestPrincipal, Not: []authz.Match{{Kind: authz.Suffix, Value: "/bob"}}},
	} {
		forbids["DENY of "+what] = policyFor(authz.Deny, authz.Clauses{c})
	}
	forbids["ALLOW of another claim"] = policyFor(authz.Allow, authz.Clauses{claimIs("[role]", authz.Exact, "writer")})
	forbids["ALLOW of another principal"] = policyFor(authz.Allow, authz.Clauses{clause(authz.RequestPrincipal, authz.Suffix, "/bob")})
	none := registry.Event{Kind: registry.Policies, ID: "shop/p"}
	m.apply(s.believing(issuer), anyToken)
	eventually(t, "a token is demanded", func() bool {
		resp, err := o.ask(o.client(mine, "HTTP/1.1"), "/")
		return err == nil && resp.StatusCode == http.StatusForbidden
	})
	for what, policy := range forbids {
		var all []*opened
		for how, with := range streamsOf(o) {
			all = append(all, o.open(how, mine, with), o.open(how, theirs, with))
		}
		m.apply(policy)
		ended, took := within(5*time.Second, all, 3)
		more, _ := within(400*time.Millisecond, all, 4)
		if ended[mine] != 3 || more[theirs] != 0 {
			t.Errorf("%s: of 3 that it forbids %d ended within 5 s, and of 3 others %d", what, ended[mine], more[theirs])
		}
		t.Logf("%s: %v ended in %s", what, ended, took)
		m.apply(anyToken)
	}
	var all []*opened
	for how, with := range streamsOf(o) {
		all = append(all, o.open(how, mine, with), o.open(how, theirs, with))
	}
	for what, policy := range map[string]registry.Event{
		"ALLOW of any token":      anyToken,
		"DENY of another claim":   policyFor(authz.Deny, authz.Clauses{claimIs("[role]", authz.Exact, "read")}, authz.Clauses{claimIs("[none]", authz.Present, "")}),
		"DENY of claims of texts": policyFor(authz.Deny, authz.Clauses{claimIs("[text][er]", authz.Present, "")}, authz.Clauses{claimIs("[level]", authz.Suffix, "@")}),
		"DENY of no token":        policyFor(authz.Deny, authz.Clauses{{Attribute: authz.RequestPrincipal, Not: []authz.Match{{Kind: authz.Present}}}}),
		"none":                    none,
	} {
		m.apply(policy)
		if ended, _ := within(1500*time.Millisecond, all, 1); len(ended) > 0 {
			t.Fatalf("%s: %v ended", what, ended)
		}
	}
}

// What a token said counts as long as a RequestAuthentication names its issuer; by itself, none ends anything. What was opened without a token, or before tokens were verified, ends when one is demanded.
func TestTokensCountAsLongAsTheirIssuerIsNamed(t *testing.T) {
	mine, theirs, bare := account("shop", "client"), account("bank", "other"), account("shop", "bare")
	m, o := served(t, streaming(t), protocol.HTTP, mine, theirs, bare)
	s := newSigner(t)
	const a, b = "https://issuer.example/a", "https://issuer.example/b"
	o.tokens = map[spiffe.ID]string{mine: s.token(map[string]any{"iss": a, "sub": "ann"}), theirs: s.token(map[string]any{"iss": b, "sub": "ann"})}
	none, unverified := registry.Event{Kind: registry.Policies, ID: "shop/p"}, registry.Event{Kind: registry.RequestAuths, ID: "shop/tokens"}
	var all []*opened
	openAll := func(of ...spiffe.ID) {
		all = nil
		for how, with := range streamsOf(o) {
			for _, who := range of {
				all = append(all, o.open(how, who, with))
			}
		}
	}
	ends := func(what string, expected map[spiffe.ID]int, events ...registry.Event) {
		t.Helper()
		m.apply(events...)
		sum := 0
		for _, n := range expected {
			sum += n
		}
		within(5*time.Second, all, sum)
		if more, _ := within(1500*time.Millisecond, all, sum+1); !maps.Equal(more, expected) {
			t.Errorf("%s: %v ended, want %v", what, more, expected)
		}
	}
	nothing := map[spiffe.ID]int{}

	openAll(mine, theirs, bare)
	ends("tokens are verified from now on", nothing, s.believing(a, b))
	ends("and demanded, which nobody's was when it began", map[spiffe.ID]int{mine: 3, theirs: 3, bare: 3}, anyToken)
	openAll(mine, theirs)
	ends("another key is looked for, too", nothing, s.believing(b, "https://issuer.example/c", a))
	ends("an issuer is named no more", map[spiffe.ID]int{mine: 3}, s.believing(b))
	ends("no token is verified any more", map[spiffe.ID]int{mine: 3, theirs: 3}, unverified)
	m.apply(s.believing(a, b))
	openAll(mine, theirs)
	ends("none is demanded", nothing, none)
	ends("nor verified", nothing, unverified)
	ends("but denied is who has one", nothing, policyFor(authz.Deny, authz.Clauses{clause(authz.RequestPrincipal, authz.Present, "")}))
	ends("and verified", map[spiffe.ID]int{theirs: 3}, s.believing(b))
}
