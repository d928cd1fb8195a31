package translate_test

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/go-jose/go-jose/v4"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// issuer signs tokens by keys of every kind that proxies verify.
type issuer struct {
	name string
	keys map[jose.SignatureAlgorithm]crypto.Signer
}

var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	i := &issuer{name, map[jose.SignatureAlgorithm]crypto.Signer{}}
	one, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range algorithms {
		switch a {
		case jose.ES256, jose.ES384, jose.ES512:
			curve := map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()}[a]
			if i.keys[a], err = ecdsa.GenerateKey(curve, rand.Reader); err != nil {
				t.Fatal(err)
			}
		case jose.EdDSA:
			if _, i.keys[a], err = ed25519.GenerateKey(rand.Reader); err != nil {
				t.Fatal(err)
			}
		default:
			i.keys[a] = one
		}
	}
	return i
}

// published is the issuer's key set, as Pilot hands it on.
func (i *issuer) published(t *testing.T) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for a, k := range i.keys {
		key := jose.JSONWebKey{Key: k.Public(), KeyID: string(a), Algorithm: string(a)}
		set.Keys = append(set.Keys, key)
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	keys, problems, err := jwt.ReadKeys(text)
	if err != nil || len(problems) > 0 || len(keys.IDs) != len(algorithms) {
		t.Fatalf("%v %v %v", keys.IDs, problems, err)
	}
	return keys.Text
}

type claimSet map[string]any

// token signs claims; the issuer, an hour to live and a subject are there unless they are said otherwise. Nil removes a claim.
func (i *issuer) token(t *testing.T, a jose.SignatureAlgorithm, claims claimSet, headers ...string) string {
	t.Helper()
	all := claimSet{"iss": i.name, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	options := (&jose.SignerOptions{}).WithHeader("kid", string(a))
	for n := 0; n+1 < len(headers); n += 2 {
		options = options.WithHeader(jose.HeaderKey(headers[n]), headers[n+1])
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: a, Key: i.keys[a]}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// forged is a token whose header is written by hand, with a signature made by sign over the rest.
func (i *issuer) forged(t *testing.T, header string, sign func(string) []byte) string {
	t.Helper()
	payload, err := json.Marshal(claimSet{"iss": i.name, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(header)) + "." + encode(payload)
	return text + "." + encode(sign(text))
}

func hmacBy(secret []byte) func(string) []byte {
	return func(text string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
}

func nothing(string) []byte { return nil }

// verifying is one Envoy with a workload for each of several ways to verify tokens, before an application that remembers what it was asked.
type verifying struct {
	t       *testing.T
	server  *httptest.Server
	ports   []uint32
	next    int
	scene   *scene
	mu      sync.Mutex
	arrived *http.Request
}

func newVerifying(t *testing.T, workloads int) *verifying {
	v := &verifying{t: t, ports: envoytest.FreePorts(t, workloads+1)}
	v.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.arrived = r
	}))
	v.server.Config.Protocols = new(http.Protocols)
	v.server.Config.Protocols.SetHTTP1(true)
	v.server.Config.Protocols.SetUnencryptedHTTP2(true)
	v.server.Start()
	t.Cleanup(v.server.Close)
	ca := envoytest.NewCA(t)
	v.scene = &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient), mode: authz.Permissive}
	return v
}

// workload adds one, and returns its port.
func (v *verifying) workload(issuers []compile.Issuer, policies ...authz.Policy) uint32 {
	port := v.ports[v.next]
	v.next++
	v.scene.issuers = issuers
	v.scene.inbound(port, portOf(v.t, v.server.URL), protocol.HTTP, "payroll", policies...)
	return port
}

func portOf(t *testing.T, address string) uint32 {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var n uint32
	if _, err := fmt.Sscan(u.Port(), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (v *verifying) start() {
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: v.ports[len(v.ports)-1]}
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, v.scene.listeners...), append(b.StaticResources.Clusters, v.scene.clusters...)
	envoytest.Start(v.t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
}

// forget has the application have been asked nothing.
func (v *verifying) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.arrived = nil
}

// ask sends a request as it is written, and returns the answer and what the application got; nil if it got nothing.
func (v *verifying) ask(port uint32, method, target string, headers ...string) (*http.Response, string, *http.Request) {
	v.t.Helper()
	v.forget()
	conn := connect(v.t, port, authz.Request{}, nil)
	defer conn.Close()
	text := method + " " + target + " HTTP/1.1\r\nHost: payroll\r\nConnection: close\r\n"
	for _, h := range headers {
		text += h + "\r\n"
	}
	if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
		v.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		v.t.Fatalf("%s %s: %v", method, target, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return resp, string(body), v.arrived
}

func bearer(token string) string { return "Authorization: Bearer " + token }

func ruleOf(i *issuer, change func(*jwt.Rule)) jwt.Rule {
	r := jwt.Rule{Issuer: i.name, Timeout: jwt.DefaultTimeout}
	if change != nil {
		change(&r)
	}
	return r
}

// TestTokensAreVerified has every way in which a token can be good or bad.
func TestTokensAreVerified(t *testing.T) {
	a, other := newIssuer(t, "https://issuer.example/a"), newIssuer(t, "https://issuer.example/a")
	v := newVerifying(t, 3)
	open := v.workload([]compile.Issuer{{Rule: ruleOf(a, nil), KeySet: a.published(t)}})
	narrow := v.workload([]compile.Issuer{{Rule: ruleOf(a, func(r *jwt.Rule) { r.Audiences = []string{"payroll", "ledger"} }), KeySet: a.published(t)}})
	keyless := v.workload([]compile.Issuer{{Rule: ruleOf(a, nil), KeySet: jwt.NoKeys}})
	v.start()
	now := time.Now()
	public := a.keys[jose.RS256].Public()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	good := a.token(t, jose.ES256, nil)
	parts := strings.Split(good, ".")
	for name, c := range map[string]struct {
		port   uint32
		token  string
		status int
	}{
		"of another's keys":                       {open, other.token(t, jose.ES256, nil), 401},
		"of another's keys, without an ID":        {open, other.token(t, jose.ES256, nil, "kid", ""), 401},
		"of an unknown key":                       {open, a.token(t, jose.ES256, nil, "kid", "nobody's"), 401},
		"of a key by its path":                    {open, a.token(t, jose.ES256, nil, "kid", "../../../../dev/null"), 401},
		"of a key by a query":                     {open, a.token(t, jose.ES256, nil, "kid", "x' UNION SELECT 'secret"), 401},
		"with keys from elsewhere":                {open, other.token(t, jose.ES256, nil, "jku", "https://evil.example/keys", "x5u", "https://evil.example/x"), 401},
		"unsigned":                                {open, a.forged(t, `{"alg":"none"}`, nothing), 401},
		"unsigned, NonE":                          {open, a.forged(t, `{"alg":"NonE","kid":"ES256"}`, nothing), 401},
		"with an empty signature":                 {open, a.forged(t, `{"alg":"ES256","kid":"ES256"}`, nothing), 401},
		"with a signature of zeros":               {open, a.forged(t, `{"alg":"ES256","kid":"ES256"}`, func(string) []byte { return make([]byte, 64) }), 401},
		"HS256 by the public key":                 {open, a.forged(t, `{"alg":"HS256","kid":"RS256"}`, hmacBy(der)), 401},
		"HS256 by nothing":                        {open, a.forged(t, `{"alg":"HS256"}`, hmacBy(nil)), 401},
		"HS256 by the key set":                    {open, a.forged(t, `{"alg":"HS256"}`, hmacBy([]byte(a.published(t)))), 401},
		"of another issuer":                       {open, a.token(t, jose.ES256, claimSet{"iss": "https://issuer.example/b"}), 401},
		"of an issuer with the same beginning":    {open, a.token(t, jose.ES256, claimSet{"iss": a.name + "/"}), 401},
		"of no issuer":                            {open, a.token(t, jose.ES256, claimSet{"iss": nil}), 401},
		"of an issuer that is a number":           {open, a.token(t, jose.ES256, claimSet{"iss": 7}), 401},
		"expired":                                 {open, a.token(t, jose.ES256, claimSet{"exp": now.Add(-5 * time.Minute).Unix()}), 401},
		"expired long ago":                        {open, a.token(t, jose.ES256, claimSet{"exp": 1}), 401},
		"not yet valid":                           {open, a.token(t, jose.ES256, claimSet{"nbf": now.Add(5 * time.Minute).Unix()}), 401},
		"whose end is a text":                     {open, a.token(t, jose.ES256, claimSet{"exp": "tomorrow"}), 401},
		"with claims of another":                  {open, parts[0] + "." + strings.Split(a.token(t, jose.ES256, claimSet{"sub": "admin"}), ".")[1] + "." + parts[2], 401},
		"with a header of another":                {open, strings.Split(a.token(t, jose.ES384, nil), ".")[0] + "." + parts[1] + "." + parts[2], 401},
		"cut short":                               {open, good[:len(good)-8], 401},
		"of two parts":                            {open, parts[0] + "." + parts[1], 401},
		"of five parts":                           {open, good + ".a.b", 401},
		"no token at all":                         {open, "hello", 401},
		"nothing but dots":                        {open, "..", 401},
		"of a megabyte":                           {open, strings.Repeat("a", 1<<20), 431},
		"of a hundred kilobytes":                  {open, a.token(t, jose.ES256, claimSet{"x": strings.Repeat("a", 70_000)}), 200},
		"for another audience":                    {narrow, a.token(t, jose.ES256, claimSet{"aud": "others"}), 403},
		"for nobody":                              {narrow, good, 403},
		"for one of two audiences":                {narrow, a.token(t, jose.ES256, claimSet{"aud": "ledger"}), 200},
		"for several, with one of two":            {narrow, a.token(t, jose.ES256, claimSet{"aud": []string{"others", "payroll"}}), 200},
		"for an audience with the same beginning": {narrow, a.token(t, jose.ES256, claimSet{"aud": "payroll2"}), 403},
		"good, and no key is known":               {keyless, good, 401},
		"that never ends":                         {open, a.token(t, jose.ES256, claimSet{"exp": nil}), 200},
	} {
		resp, body, arrived := v.ask(c.port, "GET", "/", bearer(c.token))
		if resp.StatusCode != c.status || (arrived != nil) != (c.status == 200) {
			t.Errorf("a token %s: %d %q, arrived: %v, want %d", name, resp.StatusCode, body, arrived != nil, c.status)
		}
		if c.status == 401 && !strings.Contains(resp.Header.Get("WWW-Authenticate"), "invalid_token") {
			t.Errorf("a token %s: WWW-Authenticate is %q", name, resp.Header.Get("WWW-Authenticate"))
		}
	}
	for _, algorithm := range algorithms {
		if resp, body, arrived := v.ask(open, "GET", "/", bearer(a.token(t, algorithm, nil))); resp.StatusCode != 200 || arrived.Header.Get("Authorization") != "" {
			t.Errorf("%s: %d %q; the application gets the token: %v", algorithm, resp.StatusCode, body, arrived != nil && arrived.Header.Get("Authorization") != "")
		}
	}
	for _, port := range []uint32{open, narrow, keyless} {
		if resp, body, arrived := v.ask(port, "GET", "/"); resp.StatusCode != 200 || arrived == nil {
			t.Errorf("no token: %d %q", resp.StatusCode, body)
		}
	}
	if resp, _, arrived := v.ask(open, "OPTIONS", "/", "Origin: https://a.example", "Access-Control-Request-Method: GET"); resp.StatusCode != 200 || arrived == nil {
		t.Errorf("a preflight request: %d", resp.StatusCode)
	}
	for _, target := range []string{"/?", "/?x=1", "/x%2Fy", "//", "/%00", "*", "http://payroll/x"} {
		method := "GET"
		if target == "*" {
			method = "OPTIONS"
		}
		if resp, _, arrived := v.ask(open, method, target, bearer("bad")); arrived != nil || resp.StatusCode < 400 {
			t.Errorf("%s with a bad token: %d", target, resp.StatusCode)
		}
	}
}

// TestTokensOfSeveralIssuers has tokens of issuers in one place and in several, together and alone: each that is there has to be good, unless another in its place is.
func TestTokensOfSeveralIssuers(t *testing.T) {
	a, b, c := newIssuer(t, "https://issuer.example/a"), newIssuer(t, "https://issuer.example/b"), newIssuer(t, "https://issuer.example/c")
	stranger := newIssuer(t, "https://issuer.example/d")
	told := func(header string) func(*jwt.Rule) {
		return func(r *jwt.Rule) {
			r.PayloadHeader, r.Claims = header+"-Payload", []jwt.ClaimHeader{{Header: header + "-Sub", Claim: []string{"sub"}}}
		}
	}
	in := func(header string) func(*jwt.Rule) {
		return func(r *jwt.Rule) { told("x-" + header)(r); r.Headers = []jwt.Header{{Name: header}} }
	}
	issuerOf := func(i *issuer, change func(*jwt.Rule)) compile.Issuer {
		return compile.Issuer{Rule: ruleOf(i, change), KeySet: i.published(t)}
	}
	v := newVerifying(t, 3)
	shared := v.workload([]compile.Issuer{issuerOf(a, told("x-a")), issuerOf(b, told("x-b")), issuerOf(c, told("x-c"))})
	apart := v.workload([]compile.Issuer{issuerOf(a, in("token-a")), issuerOf(b, in("token-b"))})
	twice := v.workload([]compile.Issuer{issuerOf(a, func(r *jwt.Rule) { r.Audiences = []string{"one"} }), issuerOf(a, func(r *jwt.Rule) { r.Audiences = []string{"two"} })})
	v.start()
	const preflight = "Access-Control-Request-Method: GET"
	bad := a.token(t, jose.ES256, nil, "kid", "unknown")
	for name, c := range map[string]struct {
		port    uint32
		headers []string
		status  int
	}{
		"the first's":            {shared, []string{bearer(a.token(t, jose.ES256, nil))}, 200},
		"the second's":           {shared, []string{bearer(b.token(t, jose.RS256, nil))}, 200},
		"the third's":            {shared, []string{bearer(c.token(t, jose.EdDSA, nil))}, 200},
		"none":                   {shared, nil, 200},
		"a preflight request's":  {shared, []string{"Origin: https://a.example", preflight}, 200},
		"a stranger's":           {shared, []string{bearer(stranger.token(t, jose.ES256, nil))}, 401},
		"a bad one":              {shared, []string{bearer(bad)}, 401},
		"one's by another's key": {shared, []string{bearer(b.token(t, jose.ES256, claimSet{"iss": a.name}))}, 401},

		"each in its place":                {apart, []string{"token-a: " + a.token(t, jose.ES256, nil), "token-b: " + b.token(t, jose.ES256, nil)}, 200},
		"the second in its place":          {apart, []string{"token-b: " + b.token(t, jose.ES256, nil)}, 200},
		"in another's place":               {apart, []string{"token-b: " + a.token(t, jose.ES256, nil)}, 401},
		"a good one, and a bad elsewhere":  {apart, []string{"token-a: " + a.token(t, jose.ES256, nil), "token-b: bad"}, 401},
		"a bad one, and a good elsewhere":  {apart, []string{"token-a: " + bad, "token-b: " + b.token(t, jose.ES256, nil)}, 401},
		"in a place where nobody looks":    {apart, []string{bearer(bad)}, 200},
		"for the first rule's audience":    {twice, []string{bearer(a.token(t, jose.ES256, claimSet{"aud": "one"}))}, 200},
		"for the second rule's audience":   {twice, []string{bearer(a.token(t, jose.ES256, claimSet{"aud": "two"}))}, 200},
		"for neither of the two audiences": {twice, []string{bearer(a.token(t, jose.ES256, claimSet{"aud": "three"}))}, 403},
	} {
		forged := map[uint32][]string{shared: {"x-a-sub: admin", "X-B-Sub: admin", "x-c-sub: admin", "x-b-payload: e30"}, apart: {"x-token-a-sub: admin", "x-token-b-sub: admin"}}
		headers := append(forged[c.port], c.headers...)
		method := "GET"
		if slices.Contains(c.headers, preflight) {
			method = "OPTIONS"
		}
		resp, body, arrived := v.ask(c.port, method, "/", headers...)
		if resp.StatusCode != c.status || (arrived != nil) != (c.status == 200) {
			t.Errorf("%s: %d %q, want %d", name, resp.StatusCode, body, c.status)
		}
		if arrived == nil {
			continue
		}
		for header, values := range arrived.Header {
			if strings.HasPrefix(header, "X-") && (slices.Contains(values, "admin") || slices.Contains(values, "e30")) {
				t.Errorf("%s: the application gets %s: %q, which the client wrote", name, header, values)
			}
		}
	}
}

// TestWhereTokensAreAndWhatApplicationsGet has each place of a token, and each way to hand on what it says.
func TestWhereTokensAreAndWhatApplicationsGet(t *testing.T) {
	a := newIssuer(t, "https://issuer.example/a")
	v := newVerifying(t, 4)
	with := func(change func(*jwt.Rule)) uint32 {
		return v.workload([]compile.Issuer{{Rule: ruleOf(a, change), KeySet: a.published(t)}})
	}
	usual := with(nil)
	forwarded := with(func(r *jwt.Rule) { r.Forward = true })
	elsewhere := with(func(r *jwt.Rule) {
		r.Headers, r.Params, r.Cookies = []jwt.Header{{Name: "X-Token", Prefix: "token "}, {Name: "x-plain"}}, []string{"t"}, []string{"session"}
	})
	telling := with(func(r *jwt.Rule) {
		r.PayloadHeader = "X-Payload"
		r.Claims = []jwt.ClaimHeader{{Header: "X-Sub", Claim: []string{"sub"}}, {Header: "X-City", Claim: []string{"address", "city"}}, {Header: "X-Age", Claim: []string{"age"}},
			{Header: "X-Admin", Claim: []string{"admin"}}, {Header: "X-Groups", Claim: []string{"groups"}}, {Header: "X-None", Claim: []string{"none"}}}
	})
	v.start()
	good := a.token(t, jose.ES256, nil)
	for name, c := range map[string]struct {
		port           uint32
		target, header string
		verified       bool   // the token is looked at: a bad one in its place is 401
		left           string // of the token's place, at the application
	}{
		"two places":              {usual, "/x?access_token=TOKEN", bearer("TOKEN"), true, "TOKEN"},
		"header":                  {usual, "/x", bearer("TOKEN"), true, ""},
		"header, in lower case":   {usual, "/x", "authorization: Bearer TOKEN", true, ""},
		"parameter":               {usual, "/x?access_token=TOKEN", "", true, "TOKEN"},
		"header, forwarded":       {forwarded, "/x", bearer("TOKEN"), true, "TOKEN"},
		"parameter, forwarded":    {forwarded, "/x?access_token=TOKEN", "", true, "TOKEN"},
		"own header":              {elsewhere, "/x", "x-token: token TOKEN", true, ""},
		"own header, no prefix":   {elsewhere, "/x", "x-plain: TOKEN", true, ""},
		"own parameter":           {elsewhere, "/x?a=1&t=TOKEN&b=%2F%26c%3D1%25", "", true, "TOKEN"},
		"cookie":                  {elsewhere, "/x", "Cookie: a=1; session=TOKEN; b=2", true, "TOKEN"},
		"a header that is not it": {elsewhere, "/x", bearer("TOKEN"), false, "TOKEN"},
		"another scheme":          {usual, "/x", "Authorization: Basic TOKEN", false, "TOKEN"},
	} {
		for token, status := range map[string]int{good: 200, "a.b.c": map[bool]int{true: 401, false: 200}[c.verified]} {
			var headers []string
			if c.header != "" {
				headers = []string{strings.ReplaceAll(c.header, "TOKEN", token)}
			}
			resp, body, arrived := v.ask(c.port, "GET", strings.ReplaceAll(c.target, "TOKEN", token), headers...)
			if resp.StatusCode != status {
				t.Errorf("%s: a token %.10s…: %d %q, want %d", name, token, resp.StatusCode, body, status)
				continue
			}
			if arrived == nil || token != good {
				continue
			}
			all := fmt.Sprint(arrived.Header, arrived.RequestURI)
			if strings.Contains(all, token) != (c.left != "") {
				t.Errorf("%s: the application gets %s %v", name, arrived.RequestURI, arrived.Header)
			}
			if sent := strings.ReplaceAll(c.target, "TOKEN", token); arrived.RequestURI != sent {
				t.Errorf("%s: the application gets %s, of %s", name, arrived.RequestURI, sent)
			}
		}
	}
	token := a.token(t, jose.ES256, claimSet{"address": claimSet{"city": "Bern"}, "age": 42, "admin": true, "groups": []string{"x", "y"}})
	_, _, arrived := v.ask(telling, "GET", "/", bearer(token))
	if arrived == nil {
		t.Fatal("a good token is refused")
	}
	for header, want := range map[string]string{"X-Sub": "alice", "X-City": "Bern", "X-Age": "42", "X-Admin": "true", "X-Groups": base64.StdEncoding.EncodeToString([]byte(`["x","y"]`)),
		"X-None": "", "X-Payload": strings.Split(token, ".")[1]} {
		if got := arrived.Header.Get(header); got != want && strings.TrimRight(got, "=") != strings.TrimRight(want, "=") {
			t.Errorf("%s: the application gets %q, want %q", header, got, want)
		}
	}
}
