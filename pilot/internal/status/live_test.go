package status_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/internal/feed"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/status"
)

var (
	policies    = registry.Policies.Resource().GroupVersionResource
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

// cluster is a real API server with Istio's definitions of resources and no webhook that would refuse a bad policy.
type cluster struct {
	t         *testing.T
	config    *rest.Config
	dyn       dynamic.Interface
	namespace string
}

func connect(t *testing.T) *cluster {
	t.Helper()
	file := os.Getenv("BULWARK_TEST_KUBECONFIG")
	if file == "" {
		t.Skip("BULWARK_TEST_KUBECONFIG names no cluster")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	kube, dyn := clients(t, config)
	hooks, err := kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(t.Context(), meta.ListOptions{LabelSelector: "app.kubernetes.io/part-of=bulwark"})
	if err != nil {
		t.Fatal(err)
	}
	if len(hooks.Items) > 0 {
		t.Skip("the cluster of BULWARK_TEST_KUBECONFIG has the mesh installed, whose webhook refuses bad policies")
	}
	define(t, dyn)
	ns, err := kube.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{GenerateName: "status-test-"}}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = dyn.Resource(policies).Namespace(ns.Name).DeleteCollection(context.Background(), meta.DeleteOptions{}, meta.ListOptions{})
		_ = kube.CoreV1().Namespaces().Delete(context.Background(), ns.Name, meta.DeleteOptions{})
	})
	return &cluster{t, config, dyn, ns.Name}
}

func clients(t *testing.T, config *rest.Config) (kubernetes.Interface, dynamic.Interface) {
	t.Helper()
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return kube, dyn
}

// define makes the resources that are not there and waits until they are served.
func define(t *testing.T, dyn dynamic.Interface) {
	t.Helper()
	text, err := os.ReadFile("../../../manifests/charts/bulwark/crds/istio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(u.GetName(), ".security.istio.io") {
			continue
		}
		if _, err := dyn.Resource(definitions).Create(t.Context(), u, meta.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		await(t, dyn.Resource(definitions), u.GetName(), func(u *unstructured.Unstructured) bool {
			_, status := conditionOf(u, "Established")
			return status == "True"
		})
	}
}

// await watches an object until it is as wanted.
func await(t *testing.T, client dynamic.ResourceInterface, name string, ok func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w, err := client.Watch(ctx, meta.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last any
	for e := range w.ResultChan() {
		last = e.Object
		if u, is := e.Object.(*unstructured.Unstructured); is && ok(u) {
			return u
		}
	}
	t.Fatalf("%s did not come to be as wanted: %v", name, last)
	return nil
}

func conditionOf(u *unstructured.Unstructured, typ string) (map[string]any, string) {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == typ {
			s, _ := m["status"].(string)
			return m, s
		}
	}
	return nil, ""
}

// pilot is what of Pilot is needed: registry, feed and writer.
type pilot struct {
	metrics *prometheus.Registry
	stop    func()
}

func (c *cluster) start() *pilot {
	c.t.Helper()
	kube, dyn := clients(c.t, c.config)
	reg, err := registry.New()
	if err != nil {
		c.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(c.t.Output(), nil))
	metrics := prometheus.NewRegistry()
	source, err := feed.New(reg, kube, dyn, fixture.Options, feed.NewMetrics(metrics), log)
	if err != nil {
		c.t.Fatal(err)
	}
	writer := status.NewWriter(dyn, reg.Snapshot, source.Stored, metrics, log)
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 2)
	go func() { ended <- source.Run(ctx, writer.Apply) }()
	go func() { ended <- writer.Run(ctx) }()
	return &pilot{metrics, func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				c.t.Error(err)
			}
		}
	}}
}

func (p *pilot) metric(t *testing.T, want string) {
	t.Helper()
	text := "# HELP bulwark_pilot_unenforceable_policies Stored policies of which something cannot be enforced; they fail closed.\n" +
		"# TYPE bulwark_pilot_unenforceable_policies gauge\n" + want
	if err := testutil.GatherAndCompare(p.metrics, strings.NewReader(text), "bulwark_pilot_unenforceable_policies"); err != nil {
		t.Error(err)
	}
}

func TestStoredBadPolicySaysSoUntilItIsMended(t *testing.T) {
	c := connect(t)
	client := c.dyn.Resource(policies).Namespace(c.namespace)
	bad := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "p"},
		"spec": map[string]any{"action": "CUSTOM", "provider": map[string]any{"name": "opa"}, "rules": []any{map[string]any{}}}}}
	stored, err := client.Create(t.Context(), bad, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = unstructured.SetNestedSlice(stored.Object, []any{map[string]any{"type": "Reconciled", "status": "True"}}, "status", "conditions")
	if _, err := client.UpdateStatus(t.Context(), stored, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}

	first := c.start()
	defer first.stop()
	is := func(want string) func(u *unstructured.Unstructured) bool {
		return func(u *unstructured.Unstructured) bool { _, s := conditionOf(u, status.Type); return s == want }
	}
	u := await(t, client, "p", is("False"))
	told, _ := conditionOf(u, status.Type)
	if m, _ := told["message"].(string); told["reason"] != status.FailsClosed || !strings.Contains(m, "spec.action: CUSTOM") || told["observedGeneration"] != u.GetGeneration() {
		t.Errorf("condition %v", told)
	}
	if _, s := conditionOf(u, "Reconciled"); s != "True" {
		t.Errorf("someone else's condition was lost: %v", u.Object["status"])
	}
	first.metric(t, "bulwark_pilot_unenforceable_policies{kind=\"AuthorizationPolicy\"} 1\n"+
		"bulwark_pilot_unenforceable_policies{kind=\"PeerAuthentication\"} 0\nbulwark_pilot_unenforceable_policies{kind=\"RequestAuthentication\"} 0\n")

	second := c.start() // another replica
	defer second.stop()
	if _, err := client.Patch(t.Context(), "p", types.MergePatchType, []byte(`{"spec":{"action":"DENY","provider":null}}`), meta.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	u = await(t, client, "p", is("True"))
	if told, _ := conditionOf(u, status.Type); told["observedGeneration"] != u.GetGeneration() {
		t.Errorf("condition %v of generation %d", told, u.GetGeneration())
	}
	first.metric(t, "bulwark_pilot_unenforceable_policies{kind=\"AuthorizationPolicy\"} 0\n"+
		"bulwark_pilot_unenforceable_policies{kind=\"PeerAuthentication\"} 0\nbulwark_pilot_unenforceable_policies{kind=\"RequestAuthentication\"} 0\n")

	// Neither replica answers its own write or the other's: a second policy goes bad, and the first stays as it is.
	other := bad.DeepCopy()
	other.SetName("q")
	if _, err := client.Create(t.Context(), other, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, client, "q", is("False"))
	now, err := client.Get(t.Context(), "p", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if told, _ := conditionOf(now, status.Type); now.GetGeneration() != u.GetGeneration() || told["status"] != "True" {
		t.Errorf("the first policy changed: %v", now.Object)
	}
	for _, f := range now.GetManagedFields() {
		if f.Manager == status.FieldManager && f.Subresource != "status" {
			t.Errorf("%s wrote more than the status", f.Manager)
		}
	}
}
