package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// anything is a workload that speaks everything, with the labels ("key: value") given.
func anything(namespace, name string, labels ...string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s%[3]s}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - {name: app, image: "docker.io/bulwark/sample:%[4]s", imagePullPolicy: IfNotPresent, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}, args: [anything, --port, "8080,8081,8082,8083"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
`, namespace, name, strings.Join(append([]string{""}, labels...), ", "), *tag)
}

// services are the ways to reach a workload: by a cluster IP, by one whose service declares other protocols for the same ports, headless,
// and by an alias.
func services(namespace, name string) string {
	return strings.NewReplacer("NS", namespace, "NAME", name).Replace(`
{apiVersion: v1, kind: Service, metadata: {name: NAME, namespace: NS}, spec: {selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: NAME-again, namespace: NS}, spec: {selector: {app: NAME}, ports: [{name: http-also, port: 81, targetPort: 8081}, {name: http, port: 82, targetPort: 8082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: NAME-headless, namespace: NS}, spec: {clusterIP: None, selector: {app: NAME}, ports: [{name: http, port: 8080}, {name: any, port: 8081}, {name: tcp, port: 8082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: NAME-alias, namespace: NS}, spec: {type: ExternalName, externalName: NAME.NS.svc.cluster.local}}
---
`)
}

// manual is a service without a selector, for one address.
func manual(namespace, name, address string) string {
	return strings.NewReplacer("NS", namespace, "NAME", name, "ADDRESS", address).Replace(`
{apiVersion: v1, kind: Service, metadata: {name: NAME, namespace: NS}, spec: {ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: NAME-1, namespace: NS, labels: {kubernetes.io/service-name: NAME}}, ports: [{name: http, port: 8080}, {name: any, port: 8081}, {name: tcp, port: 8082}], endpoints: [{addresses: [ADDRESS]}]}
---
`)
}

var (
	requestKinds = []wire.Kind{wire.HTTP10, wire.HTTP11, wire.HTTP2, wire.GRPC, wire.WebSocket}
	allKinds     = append(slices.Clone(requestKinds), wire.TLS, wire.TCP)
)

// reach is every kind of call to a target whose ports are numbered from first on: one declared to be HTTP, one undeclared, one TCP.
func reach(label, host string, first int) []wire.Call {
	var out []wire.Call
	for i, kinds := range [][]wire.Kind{requestKinds, allKinds, allKinds} {
		for _, k := range kinds {
			out = append(out, wire.Call{Kind: k, Address: net.JoinHostPort(host, fmt.Sprint(first+i)), Label: label})
		}
	}
	return out
}

// TestAddressDecidesHowAWorkloadIsReached calls workloads in every way: by each kind of address, in each protocol, with whatever Host.
// The server always sees the client's identity, but where its mode says plaintext: by the header that its proxy sets, and by a policy that
// admits that identity alone.
func TestAddressDecidesHowAWorkloadIsReached(t *testing.T) {
	t.Parallel()
	const ns, out = "e2e-address", "e2e-address-outside"
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cleanUp(t, ns, out)
	objects := fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {selector: {matchLabels: {app: strict}}, mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: partly, namespace: %[1]s}, spec: {selector: {matchLabels: {app: partly}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: client-only, namespace: %[1]s}, spec: {selector: {matchLabels: {app: permissive}}, rules: [{from: [{source: {principals: [cluster.local/ns/%[1]s/sa/default]}}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: mixed, namespace: %[1]s}, spec: {clusterIP: None, selector: {group: mixed}, ports: [{name: http, port: 8080}, {name: any, port: 8081}, {name: tcp, port: 8082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: %[2]s}, spec: {selector: {app: nobody}, ports: [{name: http, port: 8081}, {name: grpc, port: 8082}]}}
---
`, ns, out)
	workloads := []string{"strict", "permissive", "partly"}
	for _, w := range workloads {
		objects += anything(ns, w) + services(ns, w)
	}
	objects += anything(ns, "client") + anything(ns, "mixed-in", "group: mixed") + anything(ns, "mixed-out", "group: mixed", `sidecar.istio.io/inject: "false"`) + anything(out, "stranger")
	if err := cluster.Apply(ctx, objects); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{ns, out} {
		if err := reachable(ctx, n, 3*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	addressOf := func(namespace, app string) string {
		pod, err := cluster.Pod(ctx, namespace, app)
		if err != nil {
			t.Fatal(err)
		}
		return pod.Status.PodIP
	}
	var calls []wire.Call
	var manuals string
	for _, w := range workloads {
		calls = append(calls, reach(w, w, 80)...)
		calls = append(calls, reach(w+" by its alias", w+"-alias", 80)...)
		calls = append(calls, reach(w+" headless", w+"-headless", 8080)...)
		calls = append(calls, reach(w+" headless, by IP", addressOf(ns, w), 8080)...)
		calls = append(calls, reach(w+" without selector", w+"-manual", 80)...)
		for _, k := range requestKinds {
			calls = append(calls, wire.Call{Kind: k, Address: w + "-again:81", Label: w + " by another service"}, wire.Call{Kind: k, Address: w + "-again:82", Label: w + " by another service, as TCP"})
		}
		for _, host := range []string{"%s." + ns, "%s." + ns + ".svc.cluster.local", "%s." + ns + ".svc.cluster.local.", "%s-alias", "%s:80", "%s:9999", "shop.example.com", "10.1.2.3", "mixed." + ns, "-"} {
			if strings.Contains(host, "%s") {
				host = fmt.Sprintf(host, w)
			}
			for _, k := range []wire.Kind{wire.HTTP10, wire.HTTP11, wire.HTTP2, wire.WebSocket} {
				if host == "-" && k != wire.HTTP10 { // the one version that may leave it out
					continue
				}
				for _, port := range []string{":80", ":81"} {
					calls = append(calls, wire.Call{Kind: k, Address: w + port, Host: host, Label: w})
				}
				calls = append(calls, wire.Call{Kind: k, Address: w + "-headless:8080", Host: host, Label: w})
			}
		}
		manuals += manual(ns, w+"-manual", addressOf(ns, w))
	}
	calls = append(calls, reach("mixed, with a proxy", addressOf(ns, "mixed-in"), 8080)...)
	calls = append(calls, reach("mixed, without", addressOf(ns, "mixed-out"), 8080)...)
	stranger := addressOf(out, "stranger")
	for _, c := range reach("outside", stranger, 8080) {
		c.Host = "strict" // the name of a service of the mesh, at an address that is not its own
		calls = append(calls, c)
	}
	// Somebody writes the stranger's address down as their service's, and that it speaks HTTP.
	manuals += strings.NewReplacer("NS", ns, "ADDRESS", stranger).Replace(`
{apiVersion: v1, kind: Service, metadata: {name: thief, namespace: NS}, spec: {clusterIP: None, ports: [{name: http, port: 8081}, {name: http-b, port: 8082}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: thief-1, namespace: NS, labels: {kubernetes.io/service-name: thief}}, ports: [{name: http, port: 8081}, {name: http-b, port: 8082}], endpoints: [{addresses: [ADDRESS]}]}
`)
	if err := cluster.Apply(ctx, manuals); err != nil {
		t.Fatal(err)
	}

	outcomes := settled(ctx, t, ns, calls)
	// At a port of which nothing is declared, a proxy waits a second for the first bytes, and takes what is later for TCP. On a machine that is busy
	// enough a client may be so late: it asks again.
	var late []wire.Call
	for _, o := range outcomes {
		if _, port, _ := net.SplitHostPort(o.Address); (port == "81" || port == "8081") && misheard(o, ns) != "" {
			late = append(late, o.Call)
		}
	}
	if len(late) > 3 {
		t.Errorf("%d calls at ports of which nothing is declared are heard without their client", len(late))
	}
	outcomes = slices.DeleteFunc(outcomes, func(o wire.Outcome) bool { return slices.Contains(late, o.Call) })
	if len(late) > 0 {
		outcomes = append(outcomes, settled(ctx, t, ns, late)...)
	}
	for _, o := range outcomes {
		if fault := misheard(o, ns); fault != "" {
			t.Errorf("%s: %s", fault, o)
		}
	}
	t.Logf("%d calls", len(outcomes))
}

// misheard says what is wrong with a call's outcome, if anything is.
func misheard(o wire.Outcome, ns string) string {
	_, port, _ := net.SplitHostPort(o.Address)
	plain := strings.HasPrefix(o.Label, "partly") && (port == "80" || port == "8080") || o.Label == "mixed, without" || o.Label == "outside"
	opaque := strings.HasSuffix(port, "2") // declared to be TCP: the server's proxy sets no headers
	switch {
	case !o.OK:
		return "it failed"
	case o.Heard == nil || opaque:
	case plain && o.Heard.Peer != "":
		return "plaintext was expected"
	case !plain && o.Heard.Peer != "spiffe://cluster.local/ns/"+ns+"/sa/default":
		return "the server does not see its client"
	}
	return ""
}

// settled makes the calls until what has just been applied is in force everywhere, and returns the last outcomes.
func settled(ctx context.Context, t *testing.T, namespace string, calls []wire.Call) []wire.Outcome {
	t.Helper()
	var out []wire.Outcome
	err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		out = out[:0]
		for chunk := range slices.Chunk(calls, 100) { // an argument of a command has a limit
			list, err := json.Marshal(chunk)
			if err != nil {
				return lab.Stop(err)
			}
			got, err := lab.ExecJSON[[]wire.Outcome](ctx, cluster, namespace, "client", "app", "sample", "calls", string(list))
			if err != nil {
				return err
			}
			out = append(out, got...)
		}
		for _, o := range out {
			if !o.OK {
				return fmt.Errorf("%s", o)
			}
		}
		return nil
	})
	if err != nil {
		t.Log(err)
	}
	return out
}

// TestProtocolChangedLiveFailsNoRequest declares a port anew again and again while requests go to it, over connections old and new.
func TestProtocolChangedLiveFailsNoRequest(t *testing.T) {
	t.Parallel()
	const ns = "e2e-live"
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	service := func(protocol string) string {
		return fmt.Sprintf("\n{apiVersion: v1, kind: Service, metadata: {name: live, namespace: %s}, spec: {selector: {app: server}, ports: [{name: main, port: 80, targetPort: 8080%s}]}}\n---\n", ns, protocol)
	}
	protocols := []string{"", ", appProtocol: http", ", appProtocol: tcp"}
	err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}\n---\n{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {mtls: {mode: STRICT}}}\n---\n", ns)+
		anything(ns, "server")+anything(ns, "client")+service(protocols[0]))
	if err == nil {
		err = reachable(ctx, ns, 2*time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	type load struct {
		result sample.LoadResult
		err    error
	}
	done := make(chan load)
	began := make(chan struct{}, 2)
	for _, flags := range [][]string{nil, {"--new-connections"}} {
		go func() {
			var l load
			var text []byte
			text, l.err = cluster.ExecNoted(ctx, func() { began <- struct{}{} }, ns, "client", "app", append([]string{"sample", "load", "http://live/", "--duration", "20s", "--workers", "4"}, flags...)...)
			if l.err == nil {
				l.err = json.Unmarshal(text, &l.result)
			}
			done <- l
		}()
	}
	<-began
	<-began
	for i := range 12 {
		if err := cluster.Apply(ctx, service(protocols[(i+1)%len(protocols)])); err != nil {
			t.Fatal(err)
		}
		if err := synced(ctx, ns); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		l := <-done
		if l.err != nil {
			t.Fatal(l.err)
		}
		if l.result.Outcomes["200"] != l.result.Requests || l.result.Requests == 0 {
			t.Errorf("%d requests: %v %q", l.result.Requests, l.result.Outcomes, l.result.Errors)
		}
		t.Logf("%d requests, %v", l.result.Requests, l.result.Outcomes)
	}
}

// reachable waits until a namespace's deployments are ready, and its proxies have what is due: before that, a first call may find
// no endpoint, as it may between pods without proxies.
func reachable(ctx context.Context, namespace string, limit time.Duration) error {
	if err := cluster.Ready(ctx, namespace, limit); err != nil {
		return err
	}
	return synced(ctx, namespace)
}

// synced waits until every proxy of a namespace has taken what Pilot has for it.
func synced(ctx context.Context, namespace string) error {
	return lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
		text, err := cluster.Meshctl(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		var proxies []struct {
			Proxy  string
			Synced bool
		}
		if err := json.Unmarshal(text, &proxies); err != nil {
			return fmt.Errorf("meshctl status: %w in %.200s", err, text)
		}
		for _, p := range proxies {
			if strings.HasSuffix(p.Proxy, "."+namespace) && !p.Synced {
				return fmt.Errorf("proxy %s is not synced", p.Proxy)
			}
		}
		return nil
	})
}
