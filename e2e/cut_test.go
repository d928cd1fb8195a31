package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

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
	for _, o := range forbidden {
		if o.OK || o.Beats == 0 {
			t.Errorf("denied, and goes on: %s", o)
		}
	}
	for _, o := range admitted {
		if !o.OK {
			t.Errorf("not denied, and ended: %s", o)
		}
	}
	began := make(chan time.Time, 1)
	revoked = hold(ctx, t, out, "client", list(others), 20*time.Second, func() {
		began <- time.Now()
		if _, err := cluster.Meshctl(ctx, "identity", "revoke", out+"/default", "--reason", "a test", "--for", "5m"); err != nil {
			t.Fatal(err)
		}
	})
	tookRevoked = time.Since(<-began)
	for _, o := range revoked {
		if o.OK || o.Beats == 0 {
			t.Errorf("revoked, and goes on: %s", o)
		}
	}
	t.Logf("%d streams ended within %s, %d went on; %d of a revoked client ended within %s", len(forbidden), took, len(admitted), len(revoked), tookRevoked)
	if took > 5*time.Second || tookRevoked > 10*time.Second { // meshctl takes its time, too
		t.Errorf("it took %s and %s", took, tookRevoked)
	}
}
