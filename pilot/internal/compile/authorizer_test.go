package compile_test

import (
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// A policy for all workloads has an external authorizer asked about each of them, but not about what it is asked itself: that would never end. Who only looks like the
// authorizer is not excepted.
func TestNobodyIsAskedAboutTheQuestion(t *testing.T) {
	reg, err := fixture.Load([]byte(`
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: finance}
spec: {clusterIPs: [10.96.0.1], selector: {app: opa}, ports: [{port: 9191}, {name: http, port: 8181}]}
---
apiVersion: v1
kind: Pod
metadata: {name: opa, namespace: finance, labels: {app: opa, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: opa}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: payroll, namespace: finance, labels: {app: payroll, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: payroll}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: opa, namespace: shop, labels: {app: opa, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: opa}
status: {podIP: 10.0.0.3}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: bulwark-system}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: bulwark-system}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	snap, set := reg.Snapshot(), compile.SettingsOf(fixture.Options)
	for pod, asks := range map[string]bool{"finance/opa": false, "finance/payroll": true, "shop/opa": true} {
		w := compile.CompileWorkload(snap, set, compile.ClassOf(snap.Pod(pod)))
		custom := slices.ContainsFunc(w.Policies, func(p authz.Policy) bool { return p.Action == authz.Custom })
		if (len(w.Authorizers) == 1) != asks || custom != asks || len(w.Policies) == 0 {
			t.Errorf("%s: %d authorizers, policies %v", pod, len(w.Authorizers), w.Policies)
		}
	}
	for number, want := range map[uint32]protocol.Protocol{9191: protocol.HTTP2, 8181: protocol.HTTP} {
		if p := compile.PortOf(snap, set, snap.Service("finance/opa"), number, registry.IPv4); p == nil || p.Protocol != want {
			t.Errorf("port %d of an authorizer: %+v, want %s", number, p, want)
		}
	}
}
