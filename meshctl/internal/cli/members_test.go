package cli

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// While an agent is being replaced there are two on its node, which is cleaned once all the same.
func TestANodeIsCleanedOnceOfEachComponent(t *testing.T) {
	pod := func(component, name, node string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: mesh.Namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": component}},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: component}}},
		}
	}
	client := &kube.Client{Interface: fake.NewClientset(pod("agent", "ends", "node1"), pod("agent", "comes", "node1"), pod("agent", "other", "node2"), pod("agent", "waits", ""),
		pod("cni", "plugin", "node1"))}
	pods, err := cleaners(t.Context(), client)
	names := map[string]string{}
	for _, p := range pods {
		names[p.Name] = p.Spec.Containers[0].Args[0]
	}
	want := map[string]string{"bulwark-cleanup-agent-node1": "cleanup", "bulwark-cleanup-agent-node2": "cleanup", "bulwark-cleanup-cni-node1": "remove"}
	if err != nil || len(pods) != len(want) || !maps.Equal(names, want) {
		t.Fatalf("%v, %v; want %v", names, err, want)
	}
}
