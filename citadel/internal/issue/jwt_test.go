package issue

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// withTokenKey gives the service a key for tokens and returns the bundle by which they are verified.
func (f fixture) withTokenKey(t testing.TB) *jwtbundle.Bundle {
	t.Helper()
	key, err := ca.NewTokenKey(f.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.Keeper.Set(catest.State(f.Keeper.Current().Signer, &ca.TokenKeys{Signer: key, Published: []ca.TokenKey{key}}))
	bundle := jwtbundle.New(spiffeid.RequireTrustDomainFromString("cluster.local"))
	if err := bundle.AddJWTAuthority(key.ID, key.Key.Public()); err != nil {
		t.Fatal(err)
	}
	return bundle
}

func decode(t *testing.T, segment string) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Each line is a MUST of the JWT-SVID specification, with its section.
func TestTokenIsAJWTSVID(t *testing.T) {
	c := newCluster(t)
	now := time.Now()
	s := newServiceAt(t, c, now)
	bundle := s.withTokenKey(t)
	resp, err := s.CreateToken(as("payroll", "agent1"), &identityv1.TokenRequest{Audience: []string{"vault", "https://db.example"}})
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(resp.GetToken(), bundle, []string{"vault"})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(resp.GetToken(), ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	header, claims := decode(t, parts[0]), decode(t, parts[1])
	number := func(claim string) int64 { n, _ := claims[claim].(float64); return int64(n) }
	for must, ok := range map[string]bool{
		"2.1 alg is ES256":                            header["alg"] == "ES256",
		"2.2 kid names the key of the bundle":         header["kid"] == s.Keeper.Current().Tokens.Signer.ID,
		"2.3 typ is JWT":                              header["typ"] == "JWT",
		"2   no other header":                         len(header) == 3,
		"3.1 sub is the SPIFFE ID of the caller":      claims["sub"] == "spiffe://cluster.local/ns/finance/sa/payroll" && svid.ID.String() == claims["sub"],
		"3.2 aud is who was asked for, and all":       fmt.Sprint(claims["aud"]) == "[vault https://db.example]",
		"3.3 exp is there":                            number("exp") == resp.GetExpires().AsTime().Unix(),
		"3   exp is five minutes off by default":      number("exp")-number("iat") == int64(tokenTTL/time.Second),
		"3   iat is now":                              number("iat") == now.Unix() && resp.GetIssued().AsTime().Unix() == now.Unix(),
		"3   jti tells tokens apart":                  len(claims["jti"].(string)) >= 20,
		"2   compact serialization (no padding, RAW)": !strings.ContainsAny(resp.GetToken(), "=+/ {"),
	} {
		if !ok {
			t.Errorf("%s: header %v, claims %v", must, header, claims)
		}
	}
	again, err := s.CreateToken(as("payroll", "agent1"), &identityv1.TokenRequest{Audience: []string{"vault"}})
	if err != nil || decode(t, strings.Split(again.GetToken(), ".")[1])["jti"] == claims["jti"] {
		t.Errorf("two tokens of one jti, %v", err)
	}
	if e := s.trail.last(t); e.GetMethod() != "CreateToken" || e.GetSourceIdentity() != svid.ID.String() {
		t.Errorf("in the trail: %v", e)
	}
}

func TestTokenIsRefusedByWhoShouldRefuseIt(t *testing.T) {
	s := newServiceAt(t, newCluster(t), time.Now())
	bundle := s.withTokenKey(t)
	mint := func(ttl time.Duration) string {
		resp, err := s.CreateToken(as("pilot"), &identityv1.TokenRequest{Audience: []string{"vault"}, Ttl: durationpb.New(ttl)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetToken()
	}
	good := mint(time.Minute)
	parts := strings.Split(good, ".")
	other := jwtbundle.New(bundle.TrustDomain())
	if err := other.AddJWTAuthority(s.Keeper.Current().Tokens.Signer.ID, newServiceAt(t, newCluster(t), time.Now()).withTokenKeySigner(t)); err != nil {
		t.Fatal(err)
	}
	s.clock.SetTime(time.Now().Add(-10 * time.Minute))
	expired := mint(time.Minute)
	for name, c := range map[string]struct {
		token    string
		bundle   *jwtbundle.Bundle
		audience string
	}{
		"another audience":         {good, bundle, "db"},
		"another key of this name": {good, other, "vault"},
		"an unknown key":           {good, jwtbundle.New(bundle.TrustDomain()), "vault"},
		"expired":                  {expired, bundle, "vault"},
		"without a signature":      {parts[0] + "." + parts[1] + ".", bundle, "vault"},
		"alg none":                 {base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", bundle, "vault"},
	} {
		if svid, err := jwtsvid.ParseAndValidate(c.token, c.bundle, []string{c.audience}); err == nil {
			t.Errorf("%s: believed to be %s", name, svid.ID)
		}
	}
	if _, err := jwtsvid.ParseAndValidate(good, bundle, []string{"vault"}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func (f fixture) withTokenKeySigner(t testing.TB) any {
	f.withTokenKey(t)
	return f.Keeper.Current().Tokens.Signer.Key.Public()
}

func TestLivesOfTokens(t *testing.T) {
	s := newService(t, newCluster(t))
	s.withTokenKey(t)
	for asked, want := range map[time.Duration]time.Duration{
		0: tokenTTL, -time.Hour: tokenTTL, time.Minute: time.Minute, time.Millisecond: time.Second, 90*time.Second + time.Millisecond: 90 * time.Second,
		time.Hour: time.Hour, 24 * time.Hour: MaxTokenTTL, 1<<63 - 1: MaxTokenTTL,
	} {
		resp, err := s.CreateToken(as("pilot"), &identityv1.TokenRequest{Audience: []string{"a"}, Ttl: durationpb.New(asked)})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.GetExpires().AsTime().Sub(resp.GetIssued().AsTime()); got != want {
			t.Errorf("asked for %s: %s, want %s", asked, got, want)
		}
	}
}

func TestTokensThatAreNotMade(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	ask := func(ctx context.Context, audience ...string) codes.Code {
		_, err := s.CreateToken(ctx, &identityv1.TokenRequest{Audience: audience})
		return status.Code(err)
	}
	if code := ask(as("pilot"), "vault"); code != codes.Unavailable {
		t.Errorf("without a key for tokens: %s", code)
	}
	s.withTokenKey(t)
	many := make([]string, maxAudiences+1)
	for i := range many {
		many[i] = fmt.Sprint("a", i)
	}
	pod := s.certificate(t, "finance", "payroll", payrollPod).Certificates
	for name, got := range map[string]struct{ code, want codes.Code }{
		"for one audience":             {ask(as("pilot"), "vault"), codes.OK},
		"for as many as may be":        {ask(as("pilot"), many[1:]...), codes.OK},
		"for a long one":               {ask(as("pilot"), strings.Repeat("a", maxAudience)), codes.OK},
		"by a certificate":             {ask(presenting(pod), "vault"), codes.OK},
		"for nobody":                   {ask(as("pilot")), codes.InvalidArgument},
		"for an empty audience":        {ask(as("pilot"), "vault", ""), codes.InvalidArgument},
		"for too many":                 {ask(as("pilot"), many...), codes.InvalidArgument},
		"for one that is too long":     {ask(as("pilot"), strings.Repeat("a", maxAudience+1)), codes.InvalidArgument},
		"for one that breaks lines":    {ask(as("pilot"), "a\nb"), codes.InvalidArgument},
		"without a token":              {ask(as(), "vault"), codes.Unauthenticated},
		"by a pod without its agent":   {ask(as("payroll"), "vault"), codes.Unauthenticated},
		"by another node's agent":      {ask(as("payroll", "agent2"), "vault"), codes.PermissionDenied},
		"by a token that is not ours":  {ask(as("other-audience", "agent1"), "vault"), codes.Unauthenticated},
		"by a pod that is gone":        {ask(as("gone", "agent1"), "vault"), codes.PermissionDenied},
		"by a Secret's certificate":    {ask(presenting(s.certificate(t, "finance", "payroll", spiffe.Pod{}).Certificates), "vault"), codes.PermissionDenied},
		"for another, by Pilot":        {ask(as("payroll", "pilot"), mesh.CitadelAudience), codes.PermissionDenied},
		"by the JWT-SVID of somewhere": {ask(as("eyJhbGciOiJFUzI1NiJ9.e30.AAAA", "agent1"), "vault"), codes.Unauthenticated},
	} {
		if got.code != got.want {
			t.Errorf("%s: %s, want %s", name, got.code, got.want)
		}
	}
}
