package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// probed is what kubelet is told to ask of the application of the same pod, by a container of its own, and what it is to come to.
type probed struct {
	name  string
	what  string // fields of the container
	ready bool
	event string // what the text of its event has in it, if one is expected
}

func probes() []probed {
	ready := func(what string) string { return "readinessProbe: {periodSeconds: 1, " + what + "}" }
	return []probed{
		{"named", `ports: [{name: web, containerPort: 8080}], ` + ready(`httpGet: {path: "/status?n=200&x=/y", port: web}`), true, ""},
		{"encoded", ready(`httpGet: {path: "any/%2F//x", port: 8080}`), true, ""},
		{"headers", ready(`httpGet: {path: /with-headers, port: 8080, httpHeaders: [{name: Host, value: shop.example.com}, {name: x-probe, value: a}, {name: X-Probe, value: b}]}`), true, ""},
		{"redirect", ready(`httpGet: {path: /redirect, port: 8080}`), true, ""},
		{"redirect-https", ready(`httpGet: {path: /redirect-https, port: 8080}`), true, ""},
		{"redirect-away", ready(`httpGet: {path: /redirect-away, port: 8080}`), true, "Readiness probe warning: Probe terminated redirects, Response body: <a href=\"https://shop.example.com/\">Found</a>."},
		{"many-headers", ready(`httpGet: {path: "/headers?n=150", port: 8080}`), true, ""},
		{"https", ready(`httpGet: {path: /secure, port: 8443, scheme: HTTPS}`), true, ""},
		{"slow", ready(`timeoutSeconds: 5, httpGet: {path: "/slow?n=3", port: 8080}`), true, ""},
		{"too-slow", ready(`httpGet: {path: "/slow?n=2", port: 8080}`), false, "(Client.Timeout exceeded while awaiting headers)"},
		{"status", ready(`httpGet: {path: "/status?n=418", port: 8080}`), false, "Readiness probe failed: HTTP probe failed with statuscode: 418"},
		{"refused", ready(`httpGet: {path: /, port: 8099}`), false, "dial tcp POD:8099: connect: connection refused"},
		{"tcp", `readinessProbe: {periodSeconds: 60, tcpSocket: {port: 9000}}`, true, ""},
		{"tcp-refused", ready(`tcpSocket: {port: 8099}`), false, "dial tcp POD:8099: connect: connection refused"},
		{"grpc", ready(`grpc: {port: 7000}`), true, ""},
		{"grpc-slow", ready(`timeoutSeconds: 5, grpc: {port: 7000, service: slow}`), true, ""},
		{"grpc-down", ready(`grpc: {port: 7000, service: down}`), false, `Readiness probe failed: service unhealthy (responded with "NOT_SERVING")`},
		{"loopback", ready(`httpGet: {path: /, port: 8097, host: 127.0.0.1}`), false, "dial tcp 127.0.0.1:8097: connect: connection refused"}, // of the node
		{"started", `lifecycle: {postStart: {httpGet: {path: "/status?n=500&started=1", port: 8080, httpHeaders: [{name: X-Hook, value: "1"}]}}}`, true, ""},
		{"not-started", `lifecycle: {postStart: {httpGet: {path: /, port: 8099}}}`, false, "PostStartHook failed"},
	}
}

func probedPod(namespace string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: v1
kind: Pod
metadata: {name: asked, namespace: %[1]s, labels: {app: asked}}
spec:
  terminationGracePeriodSeconds: 20
  containers:
    - {name: app, image: "docker.io/bulwark/sample:%[2]s", imagePullPolicy: IfNotPresent, args: [asked], lifecycle: {preStop: {httpGet: {path: /stopping, port: 8080, httpHeaders: [{name: X-Hook, value: "1"}]}}}}
`, namespace, *tag)
	for _, p := range probes() {
		fmt.Fprintf(&b, "    - {name: %s, image: \"docker.io/bulwark/sample:%s\", imagePullPolicy: IfNotPresent, args: [wait], %s}\n", p.name, *tag, p.what)
	}
	return b.String()
}

// TestKubeletFindsTheSameWithAndWithoutAProxy has one pod twice, with a proxy under STRICT and without one. What kubelet comes to must be the same, and what
// the application is asked, and by how many connections.
func TestKubeletFindsTheSameWithAndWithoutAProxy(t *testing.T) {
	t.Parallel()
	const with, without = "e2e-kubelet", "e2e-kubelet-plain"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cleanUp(t, with, without)
	if err := cluster.Apply(ctx, fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {mtls: {mode: STRICT}}}
---
`, with, without)+probedPod(with)+"---\n"+probedPod(without)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	asked := map[string][]wire.Asked{}
	for _, namespace := range []string{without, with} {
		asked[namespace] = probedIn(ctx, t, namespace)
	}
	tcp := func(namespace string) (n int) {
		for _, a := range asked[namespace] {
			if a.Port == wire.AskedTCP {
				n++
			}
		}
		return n
	}
	for _, namespace := range []string{with, without} {
		if n, most := tcp(namespace), 2+int(time.Since(began)/time.Minute); n < 1 || n > most {
			t.Errorf("%s: a probe of TCP each minute made %d connections, want 1 to %d", namespace, n, most)
		}
	}
	distinct := func(all []wire.Asked) (out []string) {
		for _, a := range all {
			text, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(text))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	got, want := distinct(asked[with]), distinct(asked[without])
	for _, a := range got {
		if !slices.Contains(want, a) {
			t.Errorf("asked only with a proxy: %s", a)
		}
	}
	for _, a := range want {
		if !slices.Contains(got, a) {
			t.Errorf("asked only without a proxy: %s", a)
		}
	}
	t.Logf("%d different requests, %d and %d in all, among them\n%s", len(got), len(asked[with]), len(asked[without]), strings.Join(got, "\n"))
}

// probedIn waits until kubelet has come to what it should about the pod of a namespace, deletes the pod, and returns what its application was asked, with POD for its address.
func probedIn(ctx context.Context, t *testing.T, namespace string) []wire.Asked {
	t.Helper()
	address, settled := "", map[string]bool{} // what kubelet has come to once: on a busy machine a probe may fail later
	said := func(list *corev1.EventList, of, text string) error {
		if text == "" {
			return nil
		}
		var others []string
		for _, e := range list.Items {
			if e.InvolvedObject.FieldPath != "spec.containers{"+of+"}" || e.Type != corev1.EventTypeWarning {
				continue
			}
			message := strings.ReplaceAll(e.Message, address, "POD")
			if strings.Contains(message, text) {
				return nil
			}
			others = append(others, message)
		}
		return fmt.Errorf("%s in %s: no event %q but %q", of, namespace, text, others)
	}
	if err := lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
		pod, err := cluster.CoreV1().Pods(namespace).Get(ctx, "asked", metav1.GetOptions{})
		if err != nil {
			return err
		}
		list, err := cluster.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=asked"})
		if err != nil {
			return err
		}
		if address = pod.Status.PodIP; address == "" {
			return fmt.Errorf("the pod in %s has no address", namespace)
		}
		for _, p := range probes() {
			if settled[p.name] {
				continue
			}
			i := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == p.name })
			if i < 0 || pod.Status.ContainerStatuses[i].Ready != p.ready {
				return fmt.Errorf("%s in %s: not ready: %v", p.name, namespace, p.ready)
			}
			if err := said(list, p.name, p.event); err != nil {
				return err
			}
			settled[p.name] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The log goes on until the application ends, which is after kubelet has called its preStop.
	log, err := cluster.CoreV1().Pods(namespace).GetLogs("asked", &corev1.PodLogOptions{Container: "app", Follow: true}).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := cluster.CoreV1().Pods(namespace).Delete(ctx, "asked", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var out []wire.Asked
	for lines := json.NewDecoder(log); lines.More(); {
		var a wire.Asked
		if err := lines.Decode(&a); err != nil {
			t.Fatalf("log of the application in %s: %v", namespace, err)
		}
		a.Host = strings.ReplaceAll(a.Host, address, "POD")
		for i, h := range a.Headers {
			a.Headers[i] = strings.ReplaceAll(h, address, "POD")
		}
		out = append(out, a)
	}
	return out
}
