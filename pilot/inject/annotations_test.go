package inject

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	istio "istio.io/api/annotation"
	admissionv1 "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	redirection "github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// Each annotation that Istio's API has for pods is honoured, or named with the reason, and docs/annotations.md says which.
func TestNoAnnotationOfIstiosIsSilent(t *testing.T) {
	doc, err := os.ReadFile("../../docs/annotations.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, a := range istio.AllResourceAnnotations() {
		if !slices.Contains(a.Resources, istio.Pod) && !slices.Contains(a.Resources, istio.Any) {
			continue
		}
		n++
		known, ok := annotations[a.Name]
		if !ok {
			t.Errorf("%s is not known", a.Name)
			continue
		}
		row := fmt.Sprintf("| `%s` | ", a.Name)
		i := strings.Index(string(doc), row)
		if i < 0 {
			t.Errorf("docs/annotations.md has no row for %s", a.Name)
			continue
		}
		if none := strings.HasPrefix(string(doc)[i+len(row):], "no effect: "); none != (known.set == nil) {
			t.Errorf("docs/annotations.md says of %s that it has no effect: %v", a.Name, none)
		}
		if known.set == nil {
			pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Annotations: map[string]string{a.Name: "x"}}}
			if c, err := choose(pod); err != nil || len(c.advice) != 1 || !strings.Contains(c.advice[0], a.Name+" has no effect: ") {
				t.Errorf("%s: %v, %v", a.Name, c.advice, err)
			}
		}
	}
	if n < 40 {
		t.Errorf("Istio has %d annotations for pods: the list is not read", n)
	}
}

func annotated(t *testing.T, c Config, values map[string]string) (core.Pod, []string) {
	t.Helper()
	in := core.Pod{ObjectMeta: meta.ObjectMeta{Name: "x", Namespace: "finance", Annotations: values}, Spec: core.PodSpec{Containers: []core.Container{{Name: "a",
		Ports: []core.ContainerPort{{ContainerPort: 8080}}, ReadinessProbe: &core.Probe{ProbeHandler: core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: "/ready"}}}}}}}
	in.Spec.Containers[0].ReadinessProbe.HTTPGet.Port.IntVal = 8080
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	warnings := review(t, c, text, enabled).Warnings
	var out core.Pod
	if err := json.Unmarshal(admitTo(t, c, text, enabled), &out); err != nil {
		t.Fatal(err)
	}
	return out, warnings
}

func TestAnnotationsAreHonoured(t *testing.T) {
	pod, warnings := annotated(t, config, map[string]string{
		"traffic.sidecar.istio.io/excludeOutboundPorts":    "9443, 9000",
		"traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.241.0.0/16,10.1.2.3",
		"traffic.sidecar.istio.io/excludeInboundPorts":     "8081,9000",
		"traffic.sidecar.istio.io/includeInboundPorts":     "*",
		"sidecar.istio.io/rewriteAppHTTPProbers":           "false",
		"proxy.istio.io/config":                            `{"concurrency": 1, "holdApplicationUntilProxyStarts": true, "drainDuration": "45s"}`,
		"sidecar.istio.io/proxyCPU":                        "100m", "sidecar.istio.io/proxyMemory": "128Mi", "sidecar.istio.io/proxyCPULimit": "1500m", "sidecar.istio.io/proxyMemoryLimit": "1Gi",
		"sidecar.istio.io/logLevel": "debug", "sidecar.istio.io/componentLogLevel": "rbac:trace", "sidecar.istio.io/proxyImage": "registry.example/proxy:v9",
		"readiness.status.sidecar.istio.io/initialDelaySeconds": "3", "readiness.status.sidecar.istio.io/periodSeconds": "4", "readiness.status.sidecar.istio.io/failureThreshold": "5",
		"prometheus.io/scrape": "true", "prometheus.io/path": "/my-metrics",
	})
	init, proxy := pod.Spec.InitContainers[0], pod.Spec.InitContainers[1]
	const options = `{"excludeInboundPorts":[8081,9000],"excludeOutboundPorts":[9443,9000],"excludeOutboundCIDRs":["10.241.0.0/16","10.1.2.3/32"]}`
	if got := init.Args[len(init.Args)-1]; got != "--options="+options || pod.Annotations[mesh.RedirectedAnnotation] != options {
		t.Errorf("redirection: %s; %s", got, pod.Annotations[mesh.RedirectedAnnotation])
	}
	if get := pod.Spec.Containers[0].ReadinessProbe.HTTPGet; get.Port.IntVal != 8080 || get.Path != "/ready" {
		t.Errorf("the probe is rewritten: %+v", get)
	}
	args := strings.Join(proxy.Args, " ")
	for _, want := range []string{"--concurrency 1 ", "--log-level debug ", "--component-log-level rbac:trace ", "--drain-time-s 45 "} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in %.300s", want, args[strings.Index(args, "--service-node"):])
		}
	}
	r := proxy.Resources
	if r.Requests.Cpu().String() != "100m" || r.Limits.Cpu().String() != "1500m" || r.Requests.Memory().String() != "128Mi" || r.Limits.Memory().String() != "1Gi" {
		t.Errorf("resources %+v", r)
	}
	if p := proxy.ReadinessProbe; proxy.Image != "registry.example/proxy:v9" || p.InitialDelaySeconds != 3 || p.PeriodSeconds != 4 || p.FailureThreshold != 5 {
		t.Errorf("image %s, readiness %+v", proxy.Image, p)
	}
	if pod.Annotations[scrapePort] != "15021" || pod.Annotations[scrapePath] != "/app-health/prometheus/metrics" || !strings.Contains(args, "/my-metrics") {
		t.Errorf("Prometheus is sent to %s%s", pod.Annotations[scrapePort], pod.Annotations[scrapePath])
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "kubelet asks the application itself") || !strings.Contains(warnings[1], "neither mutual TLS nor policies hold at the ports 8081, 9000") {
		t.Errorf("warnings %q", warnings)
	}
}

// Who wants no merging has Prometheus go where it was told to go, and no way to the metrics through the proxy.
func TestMetricsAreLeftWhereTheyAreIfThePodSaysSo(t *testing.T) {
	pod, _ := annotated(t, config, map[string]string{"prometheus.istio.io/merge-metrics": "false", scrape: "true", scrapePort: "8080", scrapePath: "/my-metrics"})
	if pod.Annotations[scrapePort] != "8080" || pod.Annotations[scrapePath] != "/my-metrics" || strings.Contains(strings.Join(pod.Spec.InitContainers[1].Args, " "), "/my-metrics") {
		t.Errorf("Prometheus is sent to %s%s", pod.Annotations[scrapePort], pod.Annotations[scrapePath])
	}
}

func TestWhatAnAnnotationCannotMeanIsRefusedOrSaid(t *testing.T) {
	for _, c := range []struct{ name, value, refused, advice string }{
		{"traffic.sidecar.istio.io/excludeInboundPorts", "http", `"http" is no port`, ""},
		{"traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/99", "is no network", ""},
		{"traffic.sidecar.istio.io/includeInboundPorts", "", "", "at any port but none"},
		{"sidecar.istio.io/proxyCPU", "lots", "is no quantity", ""},
		{"sidecar.istio.io/logLevel", "chatty", "is none of", ""},
		{"sidecar.istio.io/interceptionMode", "TPROXY", "", "TPROXY has no effect"},
		{"sidecar.istio.io/interceptionMode", "NONE", "without protection", ""},
		{"sidecar.istio.io/rewriteAppHTTPProbers", "nope", "neither true nor false", ""},
		{"sidecar.istio.io/nativeSidecar", "false", "", "always a native sidecar"},
		{"proxy.istio.io/config", "concurrency: x", "is no number", ""},
		{"proxy.istio.io/config", "{", "is no ProxyConfig", ""},
		{"proxy.istio.io/config", "tracing: {sampling: 10}\nproxyMetadata: {A: b}", "", "tracing has no effect"},
		{"proxy.istio.io/config", "holdApplicationUntilProxyStarts: false", "", "always starts after its proxy"},
		{"sidecar.istio.io/proxyCpu", "1", "", "is not one that Istio has for pods"},
		{"example.com/anything", "1", "", ""},
	} {
		got, err := choose(&core.Pod{ObjectMeta: meta.ObjectMeta{Annotations: map[string]string{c.name: c.value}}})
		if (err != nil) != (c.refused != "") || err != nil && !(strings.Contains(err.Error(), c.refused) && strings.Contains(err.Error(), c.name)) {
			t.Errorf("%s %q: %v", c.name, c.value, err)
		}
		if all := strings.Join(got.advice, "; "); !strings.Contains(all, c.advice) || c.advice == "" && all != "" {
			t.Errorf("%s %q: advice %q", c.name, c.value, all)
		}
	}
}

func TestResourcesKeepToLimitRangesAndToTheClassOfThePod(t *testing.T) {
	q := resource.MustParse
	r := core.LimitRangeItem{Type: core.LimitTypeContainer, Min: core.ResourceList{"cpu": q("50m"), "memory": q("32Mi")}, Max: core.ResourceList{"cpu": q("1"), "memory": q("512Mi")},
		MaxLimitRequestRatio: core.ResourceList{"memory": q("2")}}
	exact := core.ResourceRequirements{Limits: core.ResourceList{"cpu": q("1"), "memory": q("1Gi")}}
	for _, c := range []struct {
		name    string
		pod     core.PodSpec
		ranges  []core.LimitRangeItem
		choices map[string]string
		proxy   string
		init    string
		workers int
	}{
		{"nothing said", core.PodSpec{}, nil, nil, "50m-2 64Mi-256Mi", "10m-100m 16Mi-64Mi", 2},
		{"a range", core.PodSpec{}, []core.LimitRangeItem{r}, nil, "50m-1 128Mi-256Mi", "50m-100m 32Mi-64Mi", 1},
		{"a range of pods", core.PodSpec{}, []core.LimitRangeItem{{Type: core.LimitTypePod, Max: core.ResourceList{"cpu": q("10m")}}}, nil, "50m-2 64Mi-256Mi", "10m-100m 16Mi-64Mi", 2},
		{"a range that is chosen against", core.PodSpec{}, []core.LimitRangeItem{r}, map[string]string{"sidecar.istio.io/proxyMemory": "1Gi"}, "50m-1 512Mi-512Mi", "50m-100m 32Mi-64Mi", 1},
		{"Guaranteed", core.PodSpec{Containers: []core.Container{{Name: "a", Resources: exact}}}, nil, nil, "250m-250m 256Mi-256Mi", "100m-100m 64Mi-64Mi", 1},
		{"Guaranteed, chosen", core.PodSpec{Containers: []core.Container{{Name: "a", Resources: exact}}}, nil, map[string]string{"sidecar.istio.io/proxyCPU": "1"}, "1-1 256Mi-256Mi", "100m-100m 64Mi-64Mi", 1},
		{"a request above the limit", core.PodSpec{}, nil, map[string]string{"sidecar.istio.io/proxyCPU": "3"}, "3-3 64Mi-256Mi", "10m-100m 16Mi-64Mi", 2},
	} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Annotations: c.choices}, Spec: c.pod}
		ch, err := choose(pod)
		if err != nil {
			t.Fatal(err)
		}
		proxy, init := proxyResources(pod, config, ch, c.ranges), initResources(pod, c.ranges)
		if got := said(proxy); got != c.proxy {
			t.Errorf("%s: the proxy has %s, want %s", c.name, got, c.proxy)
		}
		if got := said(init); got != c.init {
			t.Errorf("%s: the init container has %s, want %s", c.name, got, c.init)
		}
		if got := workers(config, ch, proxy.Limits["cpu"]); got != c.workers {
			t.Errorf("%s: %d workers, want %d", c.name, got, c.workers)
		}
	}
}

func said(r core.ResourceRequirements) string {
	return fmt.Sprintf("%s-%s %s-%s", r.Requests.Cpu(), r.Limits.Cpu(), r.Requests.Memory(), r.Limits.Memory())
}

// Who applies a controller is told what would be told of its pods.
func TestAuthorsOfTemplatesAreTold(t *testing.T) {
	const annotations, refused = `{"metadata":{"annotations":{"sidecar.istio.io/extraStatTags":"x"}},"spec":{}}`, `{"metadata":{"annotations":{"sidecar.istio.io/proxyCPU":"x"}},"spec":{}}`
	for object, want := range map[string]string{
		`{"spec":{"template":` + annotations + `}}`:                          "extraStatTags has no effect",
		`{"spec":{"jobTemplate":{"spec":{"template":` + annotations + `}}}}`: "extraStatTags has no effect",
		`{"spec":{"template":` + refused + `}}`:                              "its pods will be refused: annotation sidecar.istio.io/proxyCPU",
		`{"spec":{"template":{"spec":{}}}}`:                                  "",
		`{"spec":{"template":7}}`:                                            "",
		`{}`:                                                                 "",
	} {
		got := Templates(config, func(context.Context, string) (map[string]string, error) { return enabled, nil })(t.Context(), &admissionv1.AdmissionRequest{
			Operation: admissionv1.Create, Namespace: "finance", Object: runtime.RawExtension{Raw: []byte(object)}})
		if all := strings.Join(got.Warnings, "; "); !got.Allowed || !strings.Contains(all, want) || want == "" && all != "" {
			t.Errorf("%s: allowed %v, %q", object, got.Allowed, all)
		}
	}
}

func TestRedirectionOfAllButSomeIsRead(t *testing.T) {
	for text, want := range map[string]bool{`{}`: true, `{"excludeInboundPorts":[8080]}`: false, `{"includeInboundPorts":[8080]}`: true, `{"includeInboundPorts":[]}`: false, `{"excludeInboundPorts":[8081],"includeInboundPorts":[80]}`: false} {
		o, err := redirection.Parse(text)
		if err != nil || o.Inbound(8080) != want || o.String() != text {
			t.Errorf("%s: %v, %v, %s", text, o.Inbound(8080), err, o)
		}
	}
}

// Whoever injects without the webhook gets what the webhook makes, of a pod and of the pods of a controller.
func TestObjectIsWhatTheWebhookMakesOfIt(t *testing.T) {
	ns := Namespace{Name: "finance", Labels: enabled}
	for _, pod := range []string{
		`{"kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"a","ofTheFuture":1,"readinessProbe":{"grpc":{"port":7000}}}]}}`,
		`{"kind":"Pod","metadata":{"name":"x","labels":{"app":"b"}},"spec":{"initContainers":[{"name":"i"}],"containers":[{"name":"a","livenessProbe":{"httpGet":{"port":80,"path":"/x"}}}]}}`,
		`{"kind":"Pod","metadata":{"name":"x","labels":{"sidecar.istio.io/inject":"false"}},"spec":{"containers":[{"name":"a"}]}}`,
	} {
		got, v, err := Object([]byte(pod), ns, config)
		if err != nil || v.Refused != "" {
			t.Fatalf("%s: %+v, %v", pod, v, err)
		}
		if want := admit(t, []byte(pod), enabled); !jsonpatch.Equal(got, want) {
			t.Errorf("%s becomes\n%s\nthe webhook makes\n%s", pod, got, want)
		}
		for _, controller := range []string{`{"kind":"Deployment","spec":{"replicas":2,"template":%s}}`, `{"kind":"CronJob","spec":{"jobTemplate":{"spec":{"template":%s}}}}`} {
			of, _, err := Object(fmt.Appendf(nil, controller, pod), ns, config)
			if want := fmt.Appendf(nil, controller, got); err != nil || !jsonpatch.Equal(of, want) {
				t.Errorf("%s: %v\n%s\nwant\n%s", controller, err, of, want)
			}
		}
	}
	if _, v, err := Object([]byte(`{"kind":"Deployment","spec":{"template":{"spec":{"securityContext":{"runAsUser":1337},"containers":[{"name":"a"}]}}}}`), ns, config); err != nil || v.Refused == "" {
		t.Errorf("%+v, %v", v, err)
	}
	if out, v, err := Object([]byte(`{"kind":"Service","spec":{}}`), ns, config); err != nil || v.LeftAlone == "" || string(out) != `{"kind":"Service","spec":{}}` {
		t.Errorf("%s, %+v, %v", out, v, err)
	}
}
