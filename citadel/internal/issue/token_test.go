package issue

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func set(claim string, value any) func(map[string]any) {
	return func(c map[string]any) { c[claim] = value }
}

func without(claim string) func(map[string]any) {
	return func(c map[string]any) { delete(c, claim) }
}

func unix(d time.Duration) int64 { return start.Add(d).Unix() }

func TestTokensAreVerifiedOffline(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	c.away.Store(true)
	want := Caller{Namespace: "finance", ServiceAccount: "payroll", AccountUID: "a-payroll", PodName: "payroll-1", PodUID: "u1", NodeName: "node1"}
	for name, change := range map[string]func(map[string]any){
		"as it is":                   func(map[string]any) {},
		"for Citadel among others":   set("aud", []string{"vault", mesh.CitadelAudience}),
		"for Citadel as one string":  set("aud", mesh.CitadelAudience),
		"ended within the leeway":    set("exp", unix(-tokenLeeway+time.Second)),
		"from a clock that is ahead": set("nbf", unix(tokenSkew)),
		"without nbf and iat":        func(c map[string]any) { delete(c, "nbf"); delete(c, "iat") },
	} {
		got, err := s.Authorizer.Tokens.Verify(context.Background(), c.signed(t, "payroll", change))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if n := c.reviews.Load(); n != 0 {
		t.Errorf("%d reviews", n)
	}
}

// What verification finds bad is refused, whatever the API server would say: it is not asked.
func TestBadTokensAreRefusedWithoutAsking(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	segment := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	good := c.signed(t, "payroll")
	body := segment(claims("payroll"))
	parts := strings.Split(good, ".")
	key := func(k any, id string) jose.JSONWebKey { return jose.JSONWebKey{Key: k, KeyID: id} }
	critical, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key(c.key, "k1")}, (&jose.SignerOptions{}).WithCritical("x").WithHeader("x", "y"))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := json.Marshal(claims("payroll"))
	crit, err := critical.Sign(raw)
	if err != nil {
		t.Fatal(err)
	}
	critToken, err := crit.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"signed by another key":            signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: key(other, "k1")}, claims("payroll")),
		"with another's payload":           parts[0] + "." + segment(claims("pilot")) + "." + parts[2],
		"without a signature":              parts[0] + "." + parts[1] + ".",
		"alg none":                         segment(map[string]string{"alg": "none", "kid": "k1"}) + "." + body + ".",
		"alg None":                         segment(map[string]string{"alg": "None", "kid": "k1"}) + "." + body + "." + parts[2],
		"the public key as shared secret":  signWith(t, jose.SigningKey{Algorithm: jose.HS256, Key: key(public, "k1")}, claims("payroll")),
		"an algorithm that is not the key": segment(map[string]string{"alg": "RS256", "kid": "k1"}) + "." + body + "." + parts[2],
		"a critical header":                critToken,
		"expired":                          c.signed(t, "payroll", set("exp", unix(-tokenLeeway))),
		"without an end":                   c.signed(t, "payroll", without("exp")),
		"from the future":                  c.signed(t, "payroll", set("nbf", unix(tokenSkew+time.Second))),
		"issued in the future":             c.signed(t, "payroll", set("iat", unix(tokenSkew+time.Second))),
		"for another audience":             c.signed(t, "payroll", set("aud", []string{"https://kubernetes.default.svc"})),
		"for a longer audience":            c.signed(t, "payroll", set("aud", mesh.CitadelAudience+"/x")),
		"for no audience":                  c.signed(t, "payroll", without("aud")),
		"another subject":                  c.signed(t, "payroll", set("sub", "system:serviceaccount:bulwark-system:bulwark-pilot")),
		"no subject":                       c.signed(t, "payroll", without("sub")),
		"no service account":               c.signed(t, "payroll", without("kubernetes.io")),
		"claims of another kind":           c.signed(t, "payroll", set("kubernetes.io", "x")),
		"a payload that is no object":      parts[0] + "." + segment("x") + "." + parts[2],
		"three words":                      "a.b.c",
	} {
		if got, err := s.Authorizer.Tokens.Verify(context.Background(), token); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if n := c.reviews.Load(); n != 0 {
		t.Errorf("the API server was asked %d times", n)
	}
}

func TestReplayAfterItsEndIsRefused(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	ctx := as(c.signed(t, "payroll"), c.signed(t, "agent1", set("exp", unix(48*time.Hour))))
	req := &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}
	if _, err := s.CreateCertificate(ctx, req); err != nil {
		t.Fatal(err)
	}
	s.clock.SetTime(start.Add(time.Hour + tokenLeeway))
	if _, err := s.CreateCertificate(ctx, req); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "ended at") {
		t.Fatalf("%v", err)
	}
}

// Where the keys do not decide the API server does, and only there.
func TestWhatKeysCannotDecideIsReviewed(t *testing.T) {
	c := newCluster(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unknown := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: other, KeyID: "k2"}}, claims("payroll"))
	for name, test := range map[string]struct {
		token string
		keys  func(*Keys)
	}{
		"a word":              {"payroll", nil},
		"another issuer":      {c.signed(t, "payroll", set("iss", "https://elsewhere")), nil},
		"an unknown key":      {unknown, nil},
		"no keys yet":         {c.signed(t, "payroll"), func(k *Keys) { k.set, k.next = keySet{}, start.Add(time.Hour) }},
		"keys that are stale": {c.signed(t, "payroll"), func(k *Keys) { k.set.fetched, k.next = start.Add(-keysGoodFor-time.Second), start.Add(time.Hour) }},
	} {
		s := newService(t, c)
		if test.keys != nil {
			test.keys(s.keys)
		}
		grants[test.token] = grants["payroll"]
		before := c.reviews.Load()
		if _, err := s.Authorizer.Tokens.Verify(context.Background(), test.token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := c.reviews.Load() - before; n != 1 {
			t.Errorf("%s: %d reviews", name, n)
		}
		if test.token != "payroll" {
			delete(grants, test.token)
		}
	}
}

func TestNewKeyIsFetchedWhenItIsMetButSeldom(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	rotated, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	fetches := 0
	published := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: c.key.Public(), KeyID: "k1", Algorithm: "ES256"}}}
	s.keys.get = func(_ context.Context, path string) ([]byte, error) {
		if strings.HasSuffix(path, "openid-configuration") {
			return fmt.Appendf(nil, `{"issuer":%q}`, tokenIssuer), nil
		}
		fetches++
		return json.Marshal(published)
	}
	token := signWith(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: rotated, KeyID: "k2"}}, claims("payroll"))
	verify := func() error { _, err := s.Authorizer.Tokens.Verify(context.Background(), token); return err }
	for range 5 {
		if err := verify(); status.Code(err) != codes.Unauthenticated { // by review: it is a stranger's
			t.Fatal(err)
		}
	}
	if fetches != 1 {
		t.Fatalf("%d fetches for one unknown key", fetches)
	}
	published.Keys = append(published.Keys, jose.JSONWebKey{Key: rotated.Public(), KeyID: "k2", Algorithm: "RS256"})
	s.clock.SetTime(start.Add(2 * keysRetry))
	if err := verify(); err != nil || fetches != 2 {
		t.Fatalf("after it was published: %v, %d fetches", err, fetches)
	}
	old := c.signed(t, "payroll")
	if _, err := s.Authorizer.Tokens.offline(context.Background(), old); err != nil {
		t.Fatal(err)
	}
	published.Keys = published.Keys[1:]
	if err := s.keys.fetch(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authorizer.Tokens.offline(context.Background(), old); err == nil {
		t.Fatal("a key that was withdrawn is believed")
	}
}

func TestPublishedKeysThatAreUnfitAreLeftOut(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: weak.Public(), KeyID: "k"}, {Key: []byte("secret"), KeyID: "hmac"}, {Key: weak.Public()}}})
	if err != nil {
		t.Fatal(err)
	}
	set, err := parseKeys([]byte(`{"issuer":"i"}`), good)
	if err != nil || len(set.keys) != 1 {
		t.Fatalf("%v, %v", set, err)
	}
	for name, c := range map[string][2]string{
		"no issuer": {`{}`, string(good)}, "no keys": {`{"issuer":"i"}`, `{"keys":[]}`}, "no JSON": {`{"issuer":"i"}`, `<`}, "no document": {``, string(good)},
	} {
		if _, err := parseKeys([]byte(c[0]), []byte(c[1])); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestKnownPodsGoOnWithoutTheAPIServer(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	c.away.Store(true)
	for name, want := range map[string]codes.Code{"payroll": codes.OK, "gone": codes.Unavailable, "replaced": codes.Unavailable, "dead": codes.PermissionDenied, "earlier-account": codes.Unavailable} {
		_, err := s.CreateCertificate(as(c.signed(t, name), c.signed(t, "agent1")), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if _, err := s.CreateCertificate(as("pilot"), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); status.Code(err) != codes.Unavailable {
		t.Errorf("a word: %v; a client would not try again", err)
	}
	s.clock.SetTime(start.Add(keysGoodFor + time.Second))
	late := c.signed(t, "pilot", set("exp", unix(48*time.Hour)))
	if _, err := s.CreateCertificate(as(late), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); status.Code(err) != codes.Unavailable {
		t.Errorf("keys that have not been seen for too long: %v", err)
	}
}

// A pod that the watch has not seen yet is looked up.
func TestNewPodNeedNotWaitForTheWatch(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	s.Authorizer.Pods.Watch = emptyWatch(t)
	if _, err := s.CreateCertificate(as(c.signed(t, "payroll"), c.signed(t, "agent1")), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); err != nil {
		t.Fatal(err)
	}
}

// Tokens of service accounts are not for one use: an agent shows its own with that of every pod. So none of a hundred is
// refused as a replay, and each gets a certificate of its own. What holds a stolen token back is its pod, its node and its end.
func TestTokensMayBeUsedAHundredTimesAtOnce(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	ctx := as(c.signed(t, "payroll"), c.signed(t, "agent1"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	serials := map[string]bool{}
	csr := goodCSR(t)
	for range 100 {
		wg.Go(func() {
			resp, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: csr})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			serials[leafOf(t, resp).SerialNumber.Text(16)] = true
		})
	}
	wg.Wait()
	if len(serials) != 100 {
		t.Errorf("%d serial numbers", len(serials))
	}
}

// Whatever is made of a good token: only one with its own header, claims and signature is believed.
func FuzzServiceAccountToken(f *testing.F) {
	c := newCluster(f)
	s := newService(f, c)
	good := c.signed(f, "payroll")
	f.Add(good)
	f.Add(strings.ReplaceAll(good, ".", ".."))
	f.Add("eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".")
	f.Fuzz(func(t *testing.T, token string) {
		caller, err := s.Authorizer.Tokens.offline(context.Background(), token)
		if err == nil && (!strings.HasPrefix(token, good[:strings.LastIndex(good, ".")]) || caller.PodUID != "u1") {
			t.Fatalf("believed: %s", token)
		}
	})
}
