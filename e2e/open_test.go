package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// change is something that is applied to a namespace while connections to its server are open, and then taken back.
type change struct {
	what   string
	object string // NS is the namespace
	// greets: while it holds, its identities decide in the handshake who may wait for a server's first word at an undeclared port. That is a filter chain of
	// its own, which goes with it, and which no connection that was open is in.
	greets bool
}

// changes are what must cut no connection. The server takes mutual TLS and plaintext to begin with.
var changes = []change{
	{what: "a Service on another port", object: `{apiVersion: v1, kind: Service, metadata: {name: other-port, namespace: NS}, spec: {selector: {app: server}, ports: [{name: http-metrics, port: 8083}]}}`},
	{what: "a TCP Service on another port", object: `{apiVersion: v1, kind: Service, metadata: {name: other-port, namespace: NS}, spec: {selector: {app: server}, ports: [{name: tcp-lines, port: 8083}]}}`},
	{what: "a server-first Service on another port", object: `{apiVersion: v1, kind: Service, metadata: {name: other-port, namespace: NS}, spec: {selector: {app: server}, ports: [{name: mysql, port: 8083}]}}`},
	{what: "another Service on the same ports, of other protocols", object: `{apiVersion: v1, kind: Service, metadata: {name: same-port, namespace: NS}, spec: {selector: {app: server}, ports: [{name: tcp-a, port: 80, targetPort: 8080}, {name: tcp-b, port: 81, targetPort: 8081}, {name: http-c, port: 82, targetPort: 8082}]}}`},
	{what: "a headless Service of the pods", object: `{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: NS}, spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}}`},
	{what: "a Service of nobody", object: `{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: NS}, spec: {selector: {app: nobody}, ports: [{name: http, port: 80}, {name: http-b, port: 8080}]}}`},
	{what: "a first policy, which allows all", object: `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: NS}, spec: {selector: {matchLabels: {app: server}}, rules: [{}]}}`, greets: true},
	{what: "a policy that allows the client", object: `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: NS}, spec: {rules: [{from: [{source: {namespaces: [NS]}}]}]}}`, greets: true},
	{what: "a policy that denies another", object: `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: NS}, spec: {action: DENY, rules: [{from: [{source: {namespaces: [elsewhere]}}]}]}}`},
	{what: "a policy that audits", object: `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: NS}, spec: {action: AUDIT, rules: [{to: [{operation: {paths: [/nothing]}}]}]}}`},
	{what: "another mode of another port", object: `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: NS}, spec: {selector: {matchLabels: {app: server}}, portLevelMtls: {8083: {mode: STRICT}}}}`},
	{what: "a mode of the ports themselves", object: `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: NS}, spec: {selector: {matchLabels: {app: server}}, portLevelMtls: {8080: {mode: STRICT}, 8081: {mode: PERMISSIVE}, 8082: {mode: STRICT}}}}`},
}

const strictEverywhere = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: NS}, spec: {mtls: {mode: STRICT}}}`

const openServer = `
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: NS}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
`

// held are connections of every kind to every port of the server.
func held() string {
	var calls []wire.Call
	streams := []wire.Kind{wire.HTTP11, wire.HTTP2, wire.GRPC, wire.WebSocket, wire.Events}
	for _, k := range streams {
		calls = append(calls, wire.Call{Kind: k, Address: "server:80"})
	}
	for _, k := range append(streams, wire.TLS, wire.TCP) {
		calls = append(calls, wire.Call{Kind: k, Address: "server:81"}, wire.Call{Kind: k, Address: "server:82"})
	}
	list, err := json.Marshal(calls)
	if err != nil {
		panic(err)
	}
	return string(list)
}

// TestOpenConnectionsOutliveWhatForbidsThemNothing has connections of every kind open to every port while Services, policies and
// modes come and go, and sees that each goes on, and that neither proxy has begun to drain anything. No other test runs beside it:
// a proxy has the listeners of all Services that its workload may reach, and counts the filter chains that it drains together.
func TestOpenConnectionsOutliveWhatForbidsThemNothing(t *testing.T) {
	const ns = "e2e-open"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	local := func(object string) string { return strings.ReplaceAll(object, "NS", ns) }
	err := cluster.Apply(ctx, local(openServer)+anything(ns, "server")+anything(ns, "client"))
	if err == nil {
		err = reachable(ctx, ns, 2*time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	server, err := cluster.CoreV1().Services(ns).Get(ctx, "server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	took := make(chan time.Duration, 1)
	outcomes := hold(ctx, t, ns, "client", held(), 70*time.Second, func() {
		began, empty := time.Now(), 0
		for _, c := range changes {
			if err := cluster.Apply(ctx, local(c.object)); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			nothingDrains(ctx, t, ns, server.Spec.ClusterIP, c.what, empty)
			if err := cluster.Delete(ctx, local(c.object)); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			if c.greets {
				empty++
			}
			nothingDrains(ctx, t, ns, server.Spec.ClusterIP, c.what+", taken back", empty)
		}
		pod, err := cluster.Pod(ctx, ns, "server")
		if err == nil {
			_, err = cluster.CoreV1().Pods(ns).Patch(ctx, pod.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"version":"two"}}}`), metav1.PatchOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		nothingDrains(ctx, t, ns, server.Spec.ClusterIP, "a label of the pod", empty)
		// Plaintext is forbidden from here on, and its chains drain; nothing of what is open is in one.
		if err = cluster.Apply(ctx, local(strictEverywhere)); err == nil {
			err = synced(ctx, ns)
		}
		if err != nil {
			t.Fatal(err)
		}
		took <- time.Since(began)
	})
	for _, o := range outcomes {
		if !o.OK {
			t.Error(o)
		}
	}
	t.Logf("%d connections, %d changes in %s", len(outcomes), 2*len(changes)+2, <-took)
}

// TestStreamsOutliveTheirServicesChange has the Service itself declared anew while streams through it are open, and then deleted:
// its listener drains, for longer than this test looks.
func TestStreamsOutliveTheirServicesChange(t *testing.T) {
	t.Parallel()
	const ns = "e2e-streams"
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	local := func(object string) string { return strings.ReplaceAll(object, "NS", ns) }
	service := func(protocol string) string {
		return local(fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: server, namespace: NS}, spec: {selector: {app: server}, ports: [{name: a, port: 80, targetPort: 8080, appProtocol: %[1]s}, {name: b, port: 81, targetPort: 8081, appProtocol: %[1]s}, {name: c, port: 82, targetPort: 8082, appProtocol: %[1]s}]}}`, protocol))
	}
	err := cluster.Apply(ctx, local(openServer)+anything(ns, "server")+anything(ns, "client"))
	if err == nil {
		err = reachable(ctx, ns, 2*time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	var calls []wire.Call
	for _, k := range []wire.Kind{wire.GRPC, wire.WebSocket, wire.Events} {
		calls = append(calls, wire.Call{Kind: k, Address: "server:80"}, wire.Call{Kind: k, Address: "server:81"})
	}
	for _, k := range []wire.Kind{wire.WebSocket, wire.TLS, wire.TCP} {
		calls = append(calls, wire.Call{Kind: k, Address: "server:81"}, wire.Call{Kind: k, Address: "server:82"})
	}
	list, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := hold(ctx, t, ns, "client", string(list), 30*time.Second, func() {
		for _, protocol := range []string{"tcp", "http"} {
			if err := cluster.Apply(ctx, service(protocol)); err != nil {
				t.Fatal(err)
			}
			if err := synced(ctx, ns); err != nil {
				t.Fatal(err)
			}
		}
		if err := cluster.Delete(ctx, service("http")); err != nil {
			t.Fatal(err)
		}
	})
	for _, o := range outcomes {
		if !o.OK {
			t.Error(o)
		}
	}
}

// hold keeps connections open while something happens, and longer, and returns what became of them.
func hold(ctx context.Context, t *testing.T, namespace, app, calls string, duration time.Duration, happens func()) []wire.Outcome {
	t.Helper()
	open := make(chan struct{})
	type printed struct {
		text []byte
		err  error
	}
	done := make(chan printed, 1)
	go func() {
		text, err := cluster.ExecNoted(ctx, func() { close(open) }, namespace, app, "app", "sample", "hold", "--duration", duration.String(), calls)
		done <- printed{text, err}
	}()
	select {
	case <-open:
		happens()
	case p := <-done:
		done <- p
	}
	p := <-done
	if p.err != nil {
		t.Fatal(p.err)
	}
	var out []wire.Outcome
	if err := json.Unmarshal(p.text, &out); err != nil {
		t.Fatalf("%v in %.200s", err, p.text)
	}
	return out
}

// draining is what a proxy's admin says of its listeners.
type draining struct {
	Configs []struct {
		Name  string
		State *struct {
			Version string `json:"version_info"`
		} `json:"draining_state"`
	}
}

// nothingDrains waits until the proxies have what is due, and fails if one drains connections to the server: a filter chain, the
// inbound listener, or the listeners at the server's address. Each proxy may drain some chains that no connection is in.
func nothingDrains(ctx context.Context, t *testing.T, namespace, address, after string, empty int) {
	t.Helper()
	if err := synced(ctx, namespace); err != nil {
		t.Fatalf("%s: %v", after, err)
	}
	for _, app := range []string{"server", "client"} {
		stats, err := lab.ExecJSON[sample.Response](ctx, cluster, namespace, app, "app", "sample", "get", "http://127.0.0.1:15000/stats?filter=total_filter_chains_draining")
		if err != nil {
			t.Fatal(err)
		}
		var chains int
		if _, err := fmt.Sscanf(stats.Body, "listener_manager.total_filter_chains_draining: %d", &chains); err != nil || chains > empty {
			t.Errorf("%s: the %s's proxy: %q", after, app, stats.Body)
		}
		dump, err := lab.ExecJSON[sample.Response](ctx, cluster, namespace, app, "app", "sample", "get",
			"http://127.0.0.1:15000/config_dump?resource=dynamic_listeners&mask=name,draining_state.version_info")
		if err != nil {
			t.Fatal(err)
		}
		var listeners draining
		if err := json.Unmarshal([]byte(dump.Body), &listeners); err != nil || len(listeners.Configs) == 0 {
			t.Fatalf("%v in %.200s", err, dump.Body)
		}
		for _, l := range listeners.Configs {
			if l.State != nil && (l.Name == "virtualInbound" || strings.HasPrefix(l.Name, address+"_")) {
				t.Errorf("%s: the %s's proxy drains listener %s", after, app, l.Name)
			}
		}
	}
}

// TestOpenPlaintextIsRefusedOnceItIsForbidden has plaintext connections open when the mode becomes STRICT. The proxy takes two
// resources for it, in either order: what denies a request on an open connection (403), and the listener without the filter chain
// of plaintext, which ends the connections of that chain with their next answer. Whichever comes first, none goes on.
func TestOpenPlaintextIsRefusedOnceItIsForbidden(t *testing.T) {
	t.Parallel()
	const ns, out = "e2e-plaintext", "e2e-plaintext-outside"
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cleanUp(t, ns, out)
	local := func(object string) string { return strings.ReplaceAll(object, "NS", ns) }
	err := cluster.Apply(ctx, local(openServer)+anything(ns, "server")+fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n---\n", out)+anything(out, "stranger"))
	for _, n := range []string{ns, out} {
		if err == nil {
			err = reachable(ctx, n, 2*time.Minute)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	var calls []wire.Call
	for _, k := range []wire.Kind{wire.HTTP11, wire.HTTP2} {
		for _, port := range []string{"80", "81"} {
			calls = append(calls, wire.Call{Kind: k, Address: "server." + ns + ":" + port})
		}
	}
	list, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := hold(ctx, t, out, "stranger", string(list), 20*time.Second, func() {
		if err := cluster.Apply(ctx, local(strictEverywhere)); err != nil {
			t.Fatal(err)
		}
	})
	for _, o := range outcomes {
		if o.OK || o.Beats == 0 {
			t.Errorf("want an exchange or more, then a refusal: %s", o)
		}
	}
	if err := lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error {
		fresh, err := lab.ExecJSON[[]wire.Outcome](ctx, cluster, out, "stranger", "app", "sample", "calls", string(list))
		for _, o := range fresh {
			if err == nil && o.OK {
				err = fmt.Errorf("a new connection is taken: %s", o)
			}
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
