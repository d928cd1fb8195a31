package bundle

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var roots = []byte("the roots")

func start(t *testing.T, client *fake.Clientset) {
	t.Helper()
	c := New(client, ca.NewKeeper(&ca.State{RootsPEM: roots}), &Documents{TrustDomain: "cluster.local"}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 15 seconds: %s", what)
}

func published(client *fake.Clientset, namespace string) bool {
	cm, err := client.CoreV1().ConfigMaps(namespace).Get(context.Background(), mesh.TrustBundleConfig, metav1.GetOptions{})
	return err == nil && cm.Data[mesh.RootCertKey] == string(roots) && len(cm.Data) == 2
}

func ns(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestBundleIsInEveryNamespaceAndRestored(t *testing.T) {
	going := ns("going")
	going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	going.Finalizers = []string{"kubernetes"}
	client := fake.NewClientset(ns("a"), going)
	start(t, client)
	eventually(t, "existing namespace", func() bool { return published(client, "a") })
	ctx := context.Background()
	if _, err := client.CoreV1().Namespaces().Create(ctx, ns("b"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new namespace", func() bool { return published(client, "b") })
	for name, spoil := range map[string]func() error{
		"deleted": func() error {
			return client.CoreV1().ConfigMaps("b").Delete(ctx, mesh.TrustBundleConfig, metav1.DeleteOptions{})
		},
		"another root": func() error {
			_, err := client.CoreV1().ConfigMaps("b").Update(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig, Namespace: "b"}, Data: map[string]string{mesh.RootCertKey: "evil", "more": "x"}}, metav1.UpdateOptions{})
			return err
		},
		"immutable": func() error {
			yes := true
			_, err := client.CoreV1().ConfigMaps("b").Update(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig, Namespace: "b"}, Immutable: &yes}, metav1.UpdateOptions{})
			return err
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "restored after: "+name, func() bool { return published(client, "b") })
	}
	if published(client, "going") {
		t.Fatal("published into a namespace that is going")
	}
}

func TestWebhooksGetTheBundleNowAndAfterTheyAreReplaced(t *testing.T) {
	hook := func() admissionv1.WebhookClientConfig {
		return admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: mesh.Namespace, Name: "bulwark-pilot"}}
	}
	byURL := "https://elsewhere/"
	mutatingConfig := &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.WebhookConfiguration},
		Webhooks:   []admissionv1.MutatingWebhook{{Name: "a", ClientConfig: hook()}, {Name: "b", ClientConfig: hook()}, {Name: "c", ClientConfig: admissionv1.WebhookClientConfig{URL: &byURL}}},
	}
	validatingConfig := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.WebhookConfiguration}, Webhooks: []admissionv1.ValidatingWebhook{{Name: "a", ClientConfig: hook()}},
	}
	client := fake.NewClientset(ns(mesh.Namespace), mutatingConfig, validatingConfig)
	start(t, client)
	ctx := context.Background()
	set := func() bool {
		m, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, mesh.WebhookConfiguration, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		v, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, mesh.WebhookConfiguration, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Webhooks[2].ClientConfig.CABundle != nil {
			t.Fatal("a webhook that is no service of ours was changed")
		}
		return bytes.Equal(m.Webhooks[0].ClientConfig.CABundle, roots) && bytes.Equal(m.Webhooks[1].ClientConfig.CABundle, roots) &&
			bytes.Equal(v.Webhooks[0].ClientConfig.CABundle, roots)
	}
	eventually(t, "caBundle set", set)
	if _, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(ctx, mutatingConfig.DeepCopy(), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "caBundle set again", set)
}
