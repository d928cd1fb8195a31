package featuretest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
)

// TestTheModuleIsSentToWhoHasNoFileOfIt has pods of one class on two nodes, of which the agent of one has left Pilot's version of the module in each pod's directory. Each
// Envoy takes all that it is sent, and those of that node are sent no module.
func TestTheModuleIsSentToWhoHasNoFileOfIt(t *testing.T) {
	g := golden{name: "module"}
	for i := range 4 {
		g.texts = append(g.texts, fmt.Appendf(nil, `
apiVersion: v1
kind: Pod
metadata: {name: shop-%[1]d, namespace: shop, labels: {app: shop, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: shop, containers: [{name: app}]}
status: {phase: Running, podIP: 10.0.0.%[1]d, podIPs: [{ip: 10.0.0.%[1]d}]}`, i+1))
	}
	events := g.events(t)
	all, w := received(t, events)
	on := map[string]bool{}
	for _, e := range events {
		pod := e.Object.(*registry.Pod)
		want := 4 // what knows connections, and requests, and the rules of policies and of revocations
		if modules[pod.Node] == closer.Version {
			want = 0
		}
		got, size := 0, 0
		for resource, version := range all[pod.ID] {
			body := w.body(resource, version).GetValue()
			got, size = got+bytes.Count(body, closer.Module), size+len(body)
		}
		if got != want {
			t.Errorf("pod %s on %s is sent the module %d times, not %d", pod.ID, pod.Node, got, want)
		}
		if !on[pod.Node] {
			t.Logf("pod %s on %s is sent %d bytes", pod.ID, pod.Node, size)
			g.show.Workload = pod.ID
			t.Run(pod.Node, g.loads)
		}
		on[pod.Node] = true
	}
	if len(on) != 2 {
		t.Errorf("the pods are on %v", on)
	}
}
