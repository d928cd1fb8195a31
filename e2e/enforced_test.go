package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// TestPolicyIsWaitedForUntilEveryProxyHasIt applies policies and waits for them as a pipeline does, while all proxies answer, and while one
// hangs: the condition, and meshctl, say so.
func TestPolicyIsWaitedForUntilEveryProxyHasIt(t *testing.T) {
	t.Parallel()
	const ns = "e2e-enforced"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {istio-injection: enabled}}}\n---\n", ns)+anything(ns, "server")+anything(ns, "client"))
	if err == nil {
		err = reachable(ctx, ns, 3*time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	apply := func(kind, name, rest string) {
		t.Helper()
		if err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: %s, metadata: {name: %s, namespace: %s%s}", kind, name, ns, rest)); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(policy, timeout string, more ...string) (string, error) {
		began := time.Now()
		out, err := cluster.Meshctl(ctx, append([]string{"wait", policy, "-n", ns, "--for", "enforced", "--timeout", timeout}, more...)...)
		t.Logf("wait %s: %s in %.1fs, %v", policy, strings.TrimSpace(string(out)), time.Since(began).Seconds(), err)
		return string(out), err
	}
	apply("AuthorizationPolicy", "server", "}, spec: {selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {namespaces: [elsewhere]}}]}]}}")
	apply("AuthorizationPolicy", "all", "}, spec: {action: DENY, rules: [{from: [{source: {namespaces: [nowhere]}}]}]}}")
	apply("PeerAuthentication", "strict", "}, spec: {mtls: {mode: STRICT}}}")
	for policy, want := range map[string]string{
		"authorizationpolicy/server":                  "enforced by 1 of 1 proxies",
		"authorizationpolicies.security.istio.io/all": "enforced by 2 of 2 proxies",
		"pa/strict": "enforced by 2 of 2 proxies",
	} {
		if out, err := wait(policy, "30s"); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v; want %s", policy, out, err, want)
		}
	}

	// Each change is waited for anew: what is enforced is an older generation.
	pod, err := cluster.Pod(ctx, ns, "server")
	if err != nil {
		t.Fatal(err)
	}
	resume, err := cluster.PauseContainer(pod, "istio-proxy")
	if err != nil && !errors.Is(err, lab.ErrElsewhere) {
		t.Fatal(err)
	}
	if err == nil {
		apply("AuthorizationPolicy", "all", "}, spec: {action: DENY, rules: [{from: [{source: {namespaces: [nowhere, elsewhere]}}]}]}}")
		out, err := wait("ap/all", "5s", "-o", "json")
		var told []struct {
			Proxies, Enforced int
			Lagging           []struct{ Proxy, Reason string }
		}
		if jerr := json.Unmarshal([]byte(out), &told); jerr != nil || err == nil || !strings.Contains(err.Error(), "not enforced after 5s") {
			t.Errorf("while a proxy hangs: %q, %v", out, err)
		} else if e := told[0]; e.Proxies != 2 || e.Enforced != 1 || len(e.Lagging) != 1 || e.Lagging[0].Proxy != pod.Name+"."+ns || e.Lagging[0].Reason == "" {
			t.Errorf("while a proxy hangs it is told %+v", e)
		}
		if c := enforcedCondition(ctx, t, ns, "all"); c["status"] != "False" || !strings.Contains(fmt.Sprint(c["message"]), "not yet by "+pod.Name+"."+ns) {
			t.Errorf("the condition is %v", c)
		}
		if out, err := wait("ap/server", "1s"); err != nil {
			t.Errorf("what has been enforced before is not any more: %q, %v", out, err)
		}
		if err := resume(); err != nil {
			t.Fatal(err)
		}
		if out, err := wait("ap/all", "60s"); err != nil || !strings.Contains(out, "enforced by 2 of 2 proxies") {
			t.Errorf("when it goes on: %q, %v", out, err)
		}
	}

	// What never will be enforced is not waited for, and what selects nothing is not called enforced.
	apply("AuthorizationPolicy", "trial", `, annotations: {istio.io/dry-run: "true"}}, spec: {action: DENY, rules: [{}]}}`)
	apply("AuthorizationPolicy", "nothing", "}, spec: {selector: {matchLabels: {app: none}}, action: DENY, rules: [{}]}}")
	for policy, want := range map[string]string{
		"ap/trial":   "will not be enforced: it denies nothing",
		"ap/nothing": "it selects no pod whose proxy is connected",
		"ap/missing": "is not there; kubectl get authorizationpolicies -A",
	} {
		if out, err := wait(policy, "3s"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %s", policy, out, err, want)
		}
	}
}

func enforcedCondition(ctx context.Context, t *testing.T, ns, name string) map[string]any {
	t.Helper()
	all, err := cluster.List(ctx, schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"})
	if err != nil {
		t.Fatal(err)
	}
	var conditions []any
	for _, u := range all {
		if u.GetNamespace() == ns && u.GetName() == name {
			conditions, _, _ = unstructured.NestedSlice(u.Object, "status", "conditions")
		}
	}
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "bulwark.dev/Enforced" {
			return m
		}
	}
	return nil
}
