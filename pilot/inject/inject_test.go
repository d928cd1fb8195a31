package inject

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/goldentest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var config = Config{
	TrustDomain: "cluster.local", ProxyImage: "bulwark/proxy:test", AgentImage: "bulwark/agent:test", PullPolicy: "IfNotPresent",
	ProxyCPU: "50m", ProxyCPUMax: "2", ProxyMemory: "64Mi", ProxyMemoryMax: "256Mi", ProxyLogLevel: "warning", ClusterName: "Kubernetes",
	ProxyWorkers: 2,
}

var enabled = map[string]string{"istio-injection": "enabled"}

// admit sends a pod through the webhook and returns it as the API server would store it.
func admit(t *testing.T, pod []byte, namespaceLabels map[string]string) []byte {
	t.Helper()
	return admitTo(t, config, pod, namespaceLabels)
}

// review is the webhook's answer.
func review(t *testing.T, c Config, pod []byte, namespaceLabels map[string]string) *admissionv1.AdmissionResponse {
	t.Helper()
	labels := func(context.Context, string) (map[string]string, error) { return namespaceLabels, nil }
	return Pods(func() Config { return c }, labels, func(string) []core.LimitRangeItem { return nil }, slog.New(slog.DiscardHandler))(t.Context(), &admissionv1.AdmissionRequest{
		Operation: admissionv1.Create, Namespace: "finance", Kind: meta.GroupVersionKind{Kind: "Pod"}, Object: runtime.RawExtension{Raw: pod}})
}

// admitTo is admit of an installation.
func admitTo(t *testing.T, c Config, pod []byte, namespaceLabels map[string]string) []byte {
	t.Helper()
	resp := review(t, c, pod, namespaceLabels)
	if !resp.Allowed {
		t.Fatalf("refused: %+v", resp.Result)
	}
	if resp.Patch == nil {
		return pod
	}
	patch, err := jsonpatch.DecodePatch(resp.Patch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(pod)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("inputs: %v, %v", inputs, err)
	}
	for _, in := range inputs {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml"), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			pod, err := yaml.YAMLToJSON(text)
			if err != nil {
				t.Fatal(err)
			}
			c := config
			c.CNI = strings.HasPrefix(filepath.Base(in), "cni")
			stored := admitTo(t, c, pod, enabled)
			if again := admitTo(t, c, stored, enabled); string(again) != string(stored) {
				t.Error("a pod that has a proxy is changed again")
			}
			got, err := yaml.JSONToYAML(shorten(t, stored))
			if err != nil {
				t.Fatal(err)
			}
			goldentest.Compare(t, strings.TrimSuffix(in, ".in.yaml")+".out.yaml", got)
		})
	}
}

// shorten leaves out the bootstrap, which internal/translate makes and tests.
func shorten(t *testing.T, pod []byte) []byte {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal(pod, &p); err != nil {
		t.Fatal(err)
	}
	inits, _ := p["spec"].(map[string]any)["initContainers"].([]any)
	for _, c := range inits {
		if args, ok := c.(map[string]any)["args"].([]any); ok && len(args) > 1 && args[0] == "--config-yaml" {
			args[1] = "(bootstrap)"
		}
	}
	out, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`/(poststart|prestop)/[A-Z2-7]{26}"`).ReplaceAll(out, []byte(`/$1/(random)"`))
}

func TestWhoGetsAProxy(t *testing.T) {
	for _, c := range []struct {
		name      string
		pod       core.Pod
		namespace map[string]string
		want      bool
	}{
		{"namespace", core.Pod{}, enabled, true},
		{"our namespace label", core.Pod{}, map[string]string{"bulwark.dev/injection": "enabled"}, true},
		{"nobody asks", core.Pod{}, nil, false},
		{"pod opts in", core.Pod{ObjectMeta: meta.ObjectMeta{Labels: map[string]string{"sidecar.istio.io/inject": "true"}}}, nil, true},
		{"pod opts out", core.Pod{ObjectMeta: meta.ObjectMeta{Labels: map[string]string{"sidecar.istio.io/inject": "false"}}}, enabled, false},
		{"host network", core.Pod{Spec: core.PodSpec{HostNetwork: true}}, enabled, false},
		{"has one", core.Pod{Spec: core.PodSpec{InitContainers: []core.Container{{Name: "istio-proxy"}}}}, enabled, false},
	} {
		if got := skipReason(&c.pod, "finance", c.namespace) == ""; got != c.want {
			t.Errorf("%s: gets a proxy: %v", c.name, got)
		}
	}
	if skipReason(&core.Pod{}, "kube-system", enabled) == "" {
		t.Error("kube-system gets proxies")
	}
}

// What the proxy starts with names the class that Pilot finds the stored pod to be of, wherever that is bound, and asks what kubelet asked, at the address that kubelet sets in;
// kubelet expands nothing else in it.
func TestProxyStartsWithItsClassAndItsProbes(t *testing.T) {
	for _, ipv6 := range []bool{false, true} { // the cluster has
		startsWithItsClassAndItsProbes(t, ipv6)
	}
}

func startsWithItsClassAndItsProbes(t *testing.T, ipv6 bool) {
	t.Helper()
	c := config
	c.IPv6 = ipv6
	stored := admitTo(t, c, []byte(`{"metadata":{"name":"x","namespace":"finance","labels":{"app":"pay"}},"spec":{"serviceAccountName":"payroll","containers":[{"name":"a","ports":[{"containerPort":80}],
		"readinessProbe":{"httpGet":{"port":80,"path":"/$(POD_NAME)/(x)","httpHeaders":[{"name":"address","value":"(the pod's address)"}]}},"livenessProbe":{"grpc":{"port":70000}},"startupProbe":{"tcpSocket":{"port":8080}}}]}}`), enabled)
	var p core.Pod
	if err := json.Unmarshal(stored, &p); err != nil {
		t.Fatal(err)
	}
	p.Labels[core.LabelTopologyZone], p.Labels[core.LabelTopologyRegion] = "east", "world" // as a pod gets them when it is bound to a node
	known, err := registry.Pods.Decode(&p, authz.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := startedWith(t, &p, "10.0.0.7")
	if got, want := b.GetNode().GetMetadata().GetFields()[mesh.ClassMetadata].GetStringValue(), catalog.AsInjected(compile.ClassOf(known)).String(); got != want {
		t.Errorf("class %s, want %s", got, want)
	}
	want := translate.Bootstrap()
	port := uint32(8080)
	translate.AnswerKubelet(want, []translate.Probe{
		{Container: "a", Name: "readyz", Timeout: 6 * time.Second, HTTP: &translate.HTTPProbe{Port: 80, URI: "/$(POD_NAME)/(x)",
			Headers: []translate.Header{{Name: "Address", Value: "(the pod's address)"}}}},
		{Container: "a", Name: "startupz", Timeout: 6 * time.Second, TCP: &port}}, "10.0.0.7", ipv6)
	b.Node = nil
	gotText, err := reproducible(b) // bytes of maps within are in any order
	if err != nil {
		t.Fatal(err)
	}
	if wantText, err := reproducible(want); err != nil || gotText != wantText {
		t.Errorf("starts with %s\nwant %s, %v", gotText, wantText, err)
	}
	if p.Spec.Containers[0].LivenessProbe.GRPC.Port != 70000 {
		t.Error("a port that the API server would refuse is hidden from it")
	}
}

func TestHowTheIdentityComesIsThePodsChoiceThenItsNamespaces(t *testing.T) {
	labels := func(v string) map[string]string { return map[string]string{delivery.Label: v} }
	off := map[string]string{delivery.Label: "secret", "bulwark.dev/secrets": "disabled"}
	for _, c := range []struct {
		name           string
		pod, namespace map[string]string
		want           delivery.Way
		err            string
	}{
		{"nothing is said", nil, nil, delivery.ByAgent, ""},
		{"namespace", nil, labels("secret"), delivery.BySecret, ""},
		{"pod", labels("secret"), nil, delivery.BySecret, ""},
		{"pod against namespace", labels("agent"), labels("secret"), delivery.ByAgent, ""},
		{"pod against namespace, the other way", labels("secret"), labels("agent"), delivery.BySecret, ""},
		{"something else", labels("file"), nil, "", "may be agent or secret"},
		{"there are no Secrets", nil, off, "", "no Secret to mount"},
	} {
		got, err := deliveryOf(&core.Pod{ObjectMeta: meta.ObjectMeta{Labels: c.pod}}, c.namespace)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestPathsAreThePodsChoice(t *testing.T) {
	for value, want := range map[string]struct{ normalized, refused bool }{"": {}, "as-sent": {}, "normalized": {normalized: true}, "Normalized": {refused: true}, "true": {refused: true}} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "x", Annotations: map[string]string{"bulwark.dev/paths": value}}}
		if err := checkChoices(pod); (err != nil) != want.refused {
			t.Errorf("%q: %v", value, err)
		}
		if known, err := registry.Pods.Decode(pod, authz.Options{}); err != nil || known.NormalizePaths != want.normalized {
			t.Errorf("%q: %+v, %v", value, known, err)
		}
	}
}

func TestIdleTimeoutIsThePodsChoice(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 0, "0": 0, "30m": 30 * time.Minute, "never": -1, "30": -1, "-1s": -1} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "x", Annotations: map[string]string{"bulwark.dev/idle-timeout": value}}}
		if err := checkChoices(pod); (err != nil) != (want < 0) {
			t.Errorf("%q: %v", value, err)
		}
		if known, err := registry.Pods.Decode(pod, authz.Options{}); err != nil || known.IdleTimeout != max(want, 0) {
			t.Errorf("%q: %+v, %v", value, known, err)
		}
	}
}

func TestIdentityAnnotationOfThePodsAuthorIsNotBelieved(t *testing.T) {
	out := admit(t, []byte(`{"metadata":{"name":"x","annotations":{"bulwark.dev/identity":"secret"}},"spec":{"containers":[{"name":"a"}]}}`), enabled)
	var p core.Pod
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	if pod, err := registry.Pods.Decode(&p, authz.Options{}); err != nil || pod.Delivery != delivery.ByAgent {
		t.Errorf("%+v, %v", pod, err)
	}
}

func TestPortsOfTheProxyProtocolAreThePodsChoice(t *testing.T) {
	for value, want := range map[string]struct {
		ports  string
		reason string
	}{"": {ports: "[]"}, "8080": {ports: "[8080]"}, "8443, 8080": {ports: "[8080 8443]"}, "http": {"[]", "it may be a list of them, such as 8080,8443"}, "0": {"[]", "no port"}} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "x", Annotations: map[string]string{"bulwark.dev/proxy-protocol": value}}}
		if err := checkChoices(pod); (err != nil) != (want.reason != "") || err != nil && !strings.Contains(err.Error(), want.reason) {
			t.Errorf("%q: %v", value, err)
		}
		if known, err := registry.Pods.Decode(pod, authz.Options{}); err != nil || fmt.Sprint(known.ProxyProtocol) != want.ports {
			t.Errorf("%q: %+v, %v", value, known, err)
		}
	}
	pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "x", Annotations: map[string]string{"bulwark.dev/proxy-protocol": "8080"}}, Spec: core.PodSpec{Containers: []core.Container{{Name: "app"}}}}
	in := Namespace{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}
	for named, want := range map[bool]int{true: 0, false: 1} {
		c := Defaults
		c.LoadBalancers = named
		v := decide(pod, in, c)
		if len(v.Advice) != want || want == 1 && !strings.Contains(v.Advice[0], "--set 'loadBalancers={") {
			t.Errorf("load balancers are named: %v: %+v", named, v)
		}
	}
}
