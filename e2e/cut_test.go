package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// serverAndClients has a server in one namespace that speaks anything, at an HTTP port (80), one of no declared protocol (81) and one of TCP (82), a client in another one, and more
// that a manifest says.
func serverAndClients(ctx context.Context, t *testing.T, ns, other, more string) {
	t.Helper()
	cleanUp(t, ns, other)
	err := cluster.Apply(ctx, fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: %[1]s}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
`, ns, other)+anything(ns, "server")+more+anything(other, "client"))
	for _, n := range []string{ns, other} {
		if err == nil {
			err = reachable(ctx, n, 3*time.Minute)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenConnectionsThatAPolicyForbidsEnd has two workloads of two namespaces hold connections of every kind to one server. A policy comes that
// denies one of them: within five seconds all of its connections have ended, and each of the other's goes on.
func TestOpenConnectionsThatAPolicyForbidsEnd(t *testing.T) {
	const ns, other = "e2e-cut", "e2e-cut-other"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	serverAndClients(ctx, t, ns, other, anything(ns, "client"))
	var calls []wire.Call
	for _, k := range []wire.Kind{wire.GRPC, wire.WebSocket, wire.Events} {
		calls = append(calls, wire.Call{Kind: k, Address: "server." + ns + ":80"}, wire.Call{Kind: k, Address: "server." + ns + ":81"})
	}
	for _, k := range []wire.Kind{wire.WebSocket, wire.TLS, wire.TCP} {
		calls = append(calls, wire.Call{Kind: k, Address: "server." + ns + ":81"}, wire.Call{Kind: k, Address: "server." + ns + ":82"})
	}
	list, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	var denied []wire.Outcome
	admitted := hold(ctx, t, ns, "client", string(list), 30*time.Second, func() {
		// Those that are denied end their command as soon as all of them have ended.
		began := make(chan time.Time, 1)
		denied = hold(ctx, t, other, "client", string(list), 20*time.Second, func() {
			began <- time.Now()
			if err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: deny, namespace: %s}, spec: {action: DENY, rules: [{from: [{source: {namespaces: [%s]}}]}]}}", ns, other)); err != nil {
				t.Fatal(err)
			}
		})
		took = time.Since(<-began)
	})
	ended, open := 0, 0
	for _, o := range denied {
		if o.OK || o.Beats == 0 {
			t.Errorf("denied, and goes on: %s", o)
			continue
		}
		ended++
	}
	for _, o := range admitted {
		if !o.OK {
			t.Errorf("not denied, and ended: %s", o)
			continue
		}
		open++
	}
	t.Logf("%d of %d connections that are denied ended within %s, and %d of %d others are open", ended, len(denied), took, open, len(admitted))
	if took > 5*time.Second {
		t.Errorf("it took %s until all that are denied had ended", took)
	}
}

// TestStreamsThatAskedForWhatAPolicyForbidsEnd has one client hold streams of two hosts to one port. A policy comes that denies requests for one of them: its streams end within five
// seconds, and those of the other host go on, which may share their connections. Then the client is revoked, and all that is left ends, TCP connections as well.
func TestStreamsThatAskedForWhatAPolicyForbidsEnd(t *testing.T) {
	const ns, out = "e2e-cut-streams", "e2e-cut-streams-client"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	serverAndClients(ctx, t, ns, out, "")
	streams := func(host string) (out []wire.Call) {
		for _, k := range []wire.Kind{wire.GRPC, wire.WebSocket, wire.Events} {
			out = append(out, wire.Call{Kind: k, Address: "server." + ns + ":80", Host: host}, wire.Call{Kind: k, Address: "server." + ns + ":81", Host: host})
		}
		return out
	}
	list := func(calls []wire.Call) string {
		text, err := json.Marshal(calls)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	others := append(streams("open.example"), wire.Call{Kind: wire.TCP, Address: "server." + ns + ":82"}, wire.Call{Kind: wire.TLS, Address: "server." + ns + ":82"})
	var forbidden, revoked []wire.Outcome
	var took, tookRevoked time.Duration
	admitted := hold(ctx, t, out, "client", list(others), 12*time.Second, func() {
		began := make(chan time.Time, 1)
		forbidden = hold(ctx, t, out, "client", list(streams("closed.example")), 20*time.Second, func() {
			began <- time.Now()
			if err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: deny, namespace: %s}, spec: {selector: {matchLabels: {app: server}}, action: DENY, rules: [{to: [{operation: {hosts: [closed.example], ports: ['8080', '8081']}}]}]}}", ns)); err != nil {
				t.Fatal(err)
			}
		})
		took = time.Since(<-began)
	})
	haveEnded(t, "denied, and goes on", forbidden)
	goOn(t, admitted)
	began := make(chan time.Time, 1)
	revoked = hold(ctx, t, out, "client", list(others), 20*time.Second, func() {
		began <- time.Now()
		if _, err := cluster.Meshctl(ctx, "identity", "revoke", out+"/default", "--reason", "a test", "--for", "5m"); err != nil {
			t.Fatal(err)
		}
	})
	tookRevoked = time.Since(<-began)
	haveEnded(t, "revoked, and goes on", revoked)
	t.Logf("%d streams ended within %s, %d went on; %d of a revoked client ended within %s", len(forbidden), took, len(admitted), len(revoked), tookRevoked)
	if took > 5*time.Second || tookRevoked > 10*time.Second { // meshctl takes its time, too
		t.Errorf("it took %s and %s", took, tookRevoked)
	}
}

// TestStreamsWhoseTokensAPolicyForbidsEnd has one client hold streams by tokens of two roles. A policy comes that denies one role: its streams end within five seconds, and those of the
// other go on, which may share their connections. Then the issuer is named no more, and they end as well, as a token is demanded.
func TestStreamsWhoseTokensAPolicyForbidsEnd(t *testing.T) {
	const ns, out, issuer = "e2e-cut-tokens", "e2e-cut-tokens-client", "https://issuer.example"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "a", Algorithm: string(jose.ES256)}}})
	if err != nil {
		t.Fatal(err)
	}
	apply := func(manifest string) {
		t.Helper()
		if err := cluster.Apply(ctx, manifest); err != nil {
			t.Fatal(err)
		}
	}
	believe := func(issuer string) string {
		return fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: tokens, namespace: %s}, spec: {selector: {matchLabels: {app: server}}, jwtRules: [{issuer: %q, jwks: %q}]}}\n---\n", ns, issuer, keys)
	}
	policy := func(name, action, rule string) string {
		return fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: %s, namespace: %s}, spec: {selector: {matchLabels: {app: server}}, action: %s, rules: [%s]}}\n---\n", name, ns, action, rule)
	}
	serverAndClients(ctx, t, ns, out, believe(issuer)+policy("demanded", "ALLOW", `{from: [{source: {requestPrincipals: ["*"]}}]}`))
	list := func(role string) string {
		var calls []wire.Call
		for _, k := range []wire.Kind{wire.GRPC, wire.WebSocket, wire.Events} {
			calls = append(calls, wire.Call{Kind: k, Address: "server." + ns + ":80", Token: signed(t, key, map[string]any{"iss": issuer, "sub": "ann", "realm": map[string]any{"roles": []string{"staff", role}}})})
		}
		text, err := json.Marshal(calls)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var denied []wire.Outcome
	var took time.Duration
	admitted := hold(ctx, t, out, "client", list("clerk"), 12*time.Second, func() {
		began := make(chan time.Time, 1)
		denied = hold(ctx, t, out, "client", list("guest"), 20*time.Second, func() {
			began <- time.Now()
			apply(policy("no-guests", "DENY", `{when: [{key: "request.auth.claims[realm][roles]", values: [guest]}]}`))
		})
		took = time.Since(<-began)
	})
	haveEnded(t, "denied, and goes on", denied)
	goOn(t, admitted)
	began := make(chan time.Time, 1)
	unbelieved := hold(ctx, t, out, "client", list("clerk"), 20*time.Second, func() {
		began <- time.Now()
		apply(believe("https://another.example"))
	})
	tookMore := time.Since(<-began)
	haveEnded(t, "by the token of an issuer that is named no more it goes on", unbelieved)
	t.Logf("%d streams ended within %s, %d went on until their issuer was named no more, and then ended within %s", len(denied), took, len(admitted), tookMore)
	if took > 5*time.Second || tookMore > 5*time.Second {
		t.Errorf("it took %s and %s", took, tookMore)
	}
}

// signed is a token of an hour.
func signed(t *testing.T, key *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	claims["exp"] = time.Now().Add(time.Hour).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "a"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := by.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := token.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// haveEnded expects exchanges that had begun to have ended.
func haveEnded(t *testing.T, otherwise string, outcomes []wire.Outcome) {
	t.Helper()
	for _, o := range outcomes {
		if o.OK || o.Beats == 0 {
			t.Errorf("%s: %s", otherwise, o)
		}
	}
}

// goOn expects exchanges that nobody has ended.
func goOn(t *testing.T, outcomes []wire.Outcome) {
	t.Helper()
	for _, o := range outcomes {
		if !o.OK {
			t.Errorf("not denied, and ended: %s", o)
		}
	}
}
