package precheck

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
)

func TestAnotherMeshIsNamed(t *testing.T) {
	for want, object := range map[string]runtime.Object{
		"istio-sidecar-injector":    &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"}},
		"linkerd-proxy-injector":    &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "linkerd-proxy-injector-webhook-config"}},
		"Deployment istio-system/d": &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "d", Labels: map[string]string{"app": "istiod"}}},
	} {
		err := OtherMesh(t.Context(), fake.NewClientset(object))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that names %s", err, want)
		}
	}
	if err := OtherMesh(t.Context(), fake.NewClientset()); err != nil {
		t.Errorf("empty cluster: %v", err)
	}
}

func TestTooOldKubernetesIsRefused(t *testing.T) {
	client := fake.NewClientset()
	for v, ok := range map[string]bool{"v1.32.9": false, "v1.33.0": true, "v1.36.3": true, "v1.33.1-gke.100": true} {
		client.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: v}
		if err := Version(client); (err == nil) != ok {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func TestMissingStorageClassIsRefused(t *testing.T) {
	standard := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}
	client := fake.NewClientset(standard)
	if err := Storage(t.Context(), client, ""); err == nil {
		t.Error("no default class, and no error")
	}
	if err := Storage(t.Context(), client, "fast"); err != nil {
		t.Error(err)
	}
	if err := Storage(t.Context(), client, "slow"); err == nil || !strings.Contains(err.Error(), "slow") {
		t.Errorf("got %v", err)
	}
}
