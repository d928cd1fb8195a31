package offline

import (
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestATemplateIsAPodOfItsAccountWithAProxy(t *testing.T) {
	deployment := object(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: payroll, namespace: finance}
spec: {template: {metadata: {labels: {app: payroll}}, spec: {containers: [{name: a, ports: [{name: web, containerPort: 8080}]}]}}}`)
	cron := object(t, `
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: finance}
spec: {jobTemplate: {spec: {template: {spec: {serviceAccountName: batch}}}}}`)
	// Another group's kind of a watched kind's name, and a ConfigMap that is not the list of revocations.
	strangers := []*unstructured.Unstructured{
		object(t, "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: s, namespace: finance}}"),
		object(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: bulwark-revocations, namespace: finance}}"),
	}
	options := authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}
	_, others, err := Snapshot(append(strangers, deployment, cron), options, time.Now())
	if err != nil || len(others) != 4 {
		t.Fatalf("%d others, %v", len(others), err)
	}
	pods := Templates(others, func(pod *unstructured.Unstructured) bool { return pod.GetName() == "payroll" })
	snap, others, err := Snapshot(pods, options, time.Now())
	if err != nil || len(others) != 0 {
		t.Fatalf("%d others, %v", len(others), err)
	}
	got := map[string]string{}
	for p := range snap.Pods() {
		got[p.ID] = p.ServiceAccount
		if proxied := p.ID == "finance/payroll"; p.Proxied != proxied || proxied && (p.Labels["app"] != "payroll" || len(p.Ports) != 1) {
			t.Errorf("%+v", p)
		}
	}
	if len(got) != 2 || got["finance/payroll"] != "default" || got["finance/nightly"] != "batch" {
		t.Errorf("pods and accounts: %v", got)
	}
}

// What injection leaves alone has no proxy here either, whatever its labels say.
func TestInjectedIsWhatInjectionGivesAProxy(t *testing.T) {
	namespaces := []*unstructured.Unstructured{
		object(t, "{apiVersion: v1, kind: Namespace, metadata: {name: in, labels: {istio-injection: enabled}}}"),
		object(t, "{apiVersion: v1, kind: Namespace, metadata: {name: out}}"),
	}
	injected := Injected(slices.Values(namespaces))
	for pod, want := range map[string]bool{
		"{metadata: {namespace: in}}":  true,
		"{metadata: {namespace: out}}": false,
		"{metadata: {namespace: out, labels: {sidecar.istio.io/inject: \"true\"}}}":         true,
		"{metadata: {namespace: in, labels: {sidecar.istio.io/inject: \"false\"}}}":         false,
		"{metadata: {namespace: in, annotations: {sidecar.istio.io/inject: \"false\"}}}":    false,
		"{metadata: {namespace: in}, spec: {hostNetwork: true}}":                            false,
		"{metadata: {namespace: not-there}}":                                                true,
		"{metadata: {namespace: kube-system, labels: {sidecar.istio.io/inject: \"true\"}}}": false,
	} {
		if got := injected(object(t, pod)); got != want {
			t.Errorf("%s: %v, want %v", pod, got, want)
		}
	}
}
