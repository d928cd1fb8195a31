package cli

import (
	"bytes"
	"strings"
	"testing"
)

func TestManifestsAreInjectedWithoutACluster(t *testing.T) {
	const manifests = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {annotations: {sidecar.istio.io/extraStatTags: x}}, spec: {serviceAccountName: front, containers: [{name: a, image: b}]}}}
`
	run := func(in string, args ...string) (int, string, string) {
		var out, notes bytes.Buffer
		code := Run(t.Context(), append([]string{"inject", "-f", "-"}, args...), strings.NewReader(in), &out, &notes)
		return code, out.String(), notes.String()
	}
	code, out, notes := run(manifests, "--set", "image.tag=v9", "--set", "cni=off", "--set", "trustDomain=td.example", "--set", "proxy.cpuLimit=3")
	for _, want := range []string{"kind: Service", "docker.io/bulwark/proxy:v9", "docker.io/bulwark/agent:v9", "spiffe://td.example/ns/shop/sa/front", "NET_ADMIN", `cpu: "3"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in what is printed", want)
		}
	}
	if code != 0 || !strings.Contains(notes, "deployment/web: annotation sidecar.istio.io/extraStatTags has no effect") {
		t.Errorf("status %d, %s", code, notes)
	}
	if code, out, notes := run(strings.Replace(manifests, "extraStatTags: x", "proxyCPU: x", 1)); code != 1 || !strings.Contains(notes, "deployment/web would be refused: annotation sidecar.istio.io/proxyCPU") || strings.Contains(out, "Deployment") {
		t.Errorf("status %d, %s", code, notes)
	}
}
