package cli

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// While an agent is being replaced there are two on its node, which is cleaned once all the same.
func TestANodeIsCleanedOnce(t *testing.T) {
	agent := func(name, node string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: mesh.Namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": "agent"}},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "agent"}}},
		}
	}
	client := &kube.Client{Interface: fake.NewClientset(agent("ends", "node1"), agent("comes", "node1"), agent("other", "node2"), agent("waits", ""))}
	pods, err := cleaners(t.Context(), client)
	if err != nil || len(pods) != 2 || pods[0].Name == pods[1].Name {
		t.Fatalf("%d pods clean two nodes: %v", len(pods), err)
	}
}
