package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// admitsOwn are a server, with a Service of its own and a headless one, that admits its namespace alone.
func admitsOwn(ns string) string {
	return fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: own, namespace: %[1]s}, spec: {selector: {matchLabels: {app: server}}, rules: [{from: [{source: {namespaces: [%[1]s]}}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: %[1]s}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: server-headless, namespace: %[1]s}, spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}, {name: any, port: 8081}, {name: tcp, port: 8082}]}}
---
`, ns) + anything(ns, "server") + anything(ns, "friend")
}

// TestOutOfReachIsRefusedByTheClientsOwnProxy has workloads call a server that admits one namespace, and others, by each kind of address.
func TestOutOfReachIsRefusedByTheClientsOwnProxy(t *testing.T) {
	t.Parallel()
	const ns, outsiders, outside = "e2e-reach", "e2e-reach-outsiders", "e2e-reach-outside"
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cleanUp(t, ns, outsiders, outside)
	began := time.Now()
	err := cluster.Apply(ctx, admitsOwn(ns)+fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s}}
---
{apiVersion: v1, kind: Service, metadata: {name: open, namespace: %[2]s}, spec: {selector: {app: open}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}]}}
---
`, outsiders, outside)+anything(outsiders, "outsider")+anything(outside, "open"))
	for _, n := range []string{ns, outsiders, outside} {
		if err == nil {
			err = reachable(ctx, n, 3*time.Minute)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	serverPod, err1 := cluster.Pod(ctx, ns, "server")
	openPod, err2 := cluster.Pod(ctx, outside, "open")
	server, err3 := cluster.CoreV1().Services(ns).Get(ctx, "server", metav1.GetOptions{})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	ip := server.Spec.ClusterIP
	byName := "server." + ns

	// Nothing of the server is in what the outsider's proxy has.
	dump, err := lab.ExecJSON[sample.Response](ctx, cluster, outsiders, "outsider", "app", "sample", "get", "http://127.0.0.1:15000/config_dump?include_eds")
	if err != nil {
		t.Fatal(err)
	}
	for _, trace := range []string{byName, ip + "_", serverPod.Status.PodIP} {
		if strings.Contains(dump.Body, trace) {
			t.Errorf("the outsider's proxy knows %s", trace)
		}
	}

	// Who is admitted reaches it in every way, and what is outside of the mesh is reached as ever.
	admitted := slices.Concat(reach("admitted", byName, 80), reach("admitted, headless", "server-headless."+ns, 8080))
	free := slices.Concat(reach("a Service that everyone may use", "open."+outside, 80), reach("a pod of no Service's", openPod.Status.PodIP, 8080))
	for _, o := range append(call(ctx, t, ns, "friend", admitted), call(ctx, t, outsiders, "outsider", free)...) {
		if !o.OK {
			t.Error(o)
		}
	}

	// An address of the cluster's Services that is out of reach is refused by the client's own proxy, whatever Host is named, and so is a port
	// that the Service does not have.
	refused := slices.Concat(reach("by name", byName, 80), reach("by its address", ip, 80))
	for _, k := range allKinds {
		refused = append(refused, wire.Call{Kind: k, Address: net.JoinHostPort(ip, "9999"), Label: "a port that it does not have"})
	}
	for _, k := range []wire.Kind{wire.HTTP10, wire.HTTP11, wire.HTTP2, wire.WebSocket} {
		for _, host := range []string{"shop.example.com", "open." + outside} {
			refused = append(refused, wire.Call{Kind: k, Address: net.JoinHostPort(ip, "80"), Host: host, Label: "by its address with another Host"})
		}
	}
	identity := "spiffe://cluster.local/ns/" + outsiders + "/sa/default"
	for _, o := range call(ctx, t, outsiders, "outsider", refused) {
		switch {
		case o.OK:
			t.Errorf("not refused: %s", o)
		case o.Kind == wire.TLS || o.Kind == wire.TCP:
			if !closed(o.Error) {
				t.Errorf("not closed: %s", o)
			}
		case o.Kind == wire.GRPC: // whose status comes without a body; see the unit test
		case o.Kind == wire.HTTP2:
			if !strings.Contains(o.Error, "403") {
				t.Error(o)
			}
		case !strings.Contains(o.Error, "403 Forbidden: ") || !strings.Contains(o.Error, "is out of reach of "+identity):
			t.Error(o)
		}
	}

	// A pod's own address, of a headless Service or of none, is the pod's to judge: no identity is shown to it, and it denies.
	direct := slices.Concat(reach("headless", "server-headless."+ns, 8080), reach("by its own address", serverPod.Status.PodIP, 8080))
	direct = append(direct, wire.Call{Kind: wire.HTTP11, Address: net.JoinHostPort(serverPod.Status.PodIP, "8083"), Label: "by its own address, at a port of no Service"})
	for _, o := range call(ctx, t, outsiders, "outsider", direct) {
		asTCP := strings.HasSuffix(o.Address, ":8082")
		if o.OK || o.Kind == wire.HTTP11 && !asTCP && !strings.Contains(o.Error, "403 Forbidden: RBAC") {
			t.Errorf("not denied by the pod: %s", o)
		}
	}

	// All that was refused is audited where it was.
	scene := &claims.Scene{Lab: cluster, Namespace: outsiders}
	for _, port := range []string{"80", "82", "9999"} {
		for _, protocol := range []string{"HTTP/1.1", "TCP"} {
			if port == "80" && protocol == "TCP" {
				continue // it is called by requests alone
			}
			err := scene.Audited(ctx, began, "source", func(e *claims.Event) bool {
				return e.Verdict == "VERDICT_DENIED" && e.SourceIdentity == identity && e.DestinationAddress == net.JoinHostPort(ip, port) && e.Protocol == protocol &&
					strings.HasPrefix(e.Reason, "out of reach") && (e.Kind == "" || e.Kind == "KIND_REQUEST") && !strings.HasPrefix(e.SourceAddress, "@")
			})
			if err != nil {
				t.Errorf("%s to port %s: %v", protocol, port, err)
			}
		}
	}
}

func closed(err string) bool {
	for _, end := range []string{"EOF", "reset by peer", "broken pipe"} {
		if strings.Contains(err, end) {
			return true
		}
	}
	return false
}

// call makes calls from a workload, and returns their outcomes.
func call(ctx context.Context, t *testing.T, namespace, app string, calls []wire.Call) []wire.Outcome {
	t.Helper()
	list, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	out, err := lab.ExecJSON[[]wire.Outcome](ctx, cluster, namespace, app, "app", "sample", "calls", string(list))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var grants = flag.Int("grants", 20, "how many times a client is let in and out in the test of that")

// TestAFirstPolicyGrantsAndItsEndTakesAway has a client ask every millisecond while the first policy that admits it comes and goes. It
// hears 403 and then 200, or the reverse, and nothing between: no 404, no 503, no reset.
func TestAFirstPolicyGrantsAndItsEndTakesAway(t *testing.T) {
	prove(t, "grants", func(ctx context.Context, s *claims.Scene) (string, error) {
		granted, taken, err := s.Grants(ctx, *grants)
		if err != nil {
			return "", err
		}
		at := func(all []time.Duration, share float64) int64 {
			slices.Sort(all)
			return all[int(math.Ceil(share*float64(len(all))))-1].Milliseconds()
		}
		return fmt.Sprintf("%d times: granted after %d ms (p50), %d ms (p99); taken away after %d ms, %d ms",
			*grants, at(granted, 0.5), at(granted, 0.99), at(taken, 0.5), at(taken, 0.99)), nil
	})
}

// TestWhatNarrowsReachComesAndGoes has a client that a policy admits ask without pause while a Sidecar, and the Service's own annotation, take
// the service out of its reach and give it back. It hears 200, 403 and 200, and nothing between.
func TestWhatNarrowsReachComesAndGoes(t *testing.T) {
	prove(t, "narrow", func(ctx context.Context, s *claims.Scene) (string, error) {
		sidecar := fmt.Sprintf(`{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: none, namespace: %s}, spec: {workloadSelector: {labels: {app: account-auditor}}, egress: [{hosts: ["./web.%[1]s.svc.cluster.local"]}]}}`, s.Namespace)
		exportTo := func(value string) func() error {
			return func() error {
				_, err := s.CoreV1().Services(s.Namespace).Patch(ctx, "payroll", types.MergePatchType,
					fmt.Appendf(nil, `{"metadata":{"annotations":{"networking.istio.io/exportTo":%s}}}`, value), metav1.PatchOptions{})
				return err
			}
		}
		var said []string
		for _, c := range []struct {
			what         string
			narrow, wide func() error
		}{
			{"a Sidecar", func() error { return s.Apply(ctx, sidecar) }, func() error { return s.Delete(ctx, sidecar) }},
			{"exportTo", exportTo(`"~"`), exportTo("null")},
		} {
			narrowed, err := s.Enforced(ctx, "account-auditor", "200", "403", c.narrow, "--interval=1ms")
			if err != nil {
				return "", fmt.Errorf("%s: %w", c.what, err)
			}
			widened, err := s.Enforced(ctx, "account-auditor", "403", "200", c.wide, "--interval=1ms")
			if err != nil {
				return "", fmt.Errorf("%s is taken back: %w", c.what, err)
			}
			said = append(said, fmt.Sprintf("%s narrows after %d ms, and widens after %d ms", c.what, narrowed.Milliseconds(), widened.Milliseconds()))
		}
		return strings.Join(said, "; "), nil
	})
}
