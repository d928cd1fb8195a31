// Package inject gives pods their proxy: what is added to a pod that joins the mesh, and which pods do.
package inject

import (
	"cmp"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
)

// skipReason says why a pod is left as it is; empty means that it gets a proxy. The pod's own label overrides its
// namespace's.
func skipReason(pod *core.Pod, namespace string, namespaceLabels map[string]string) string {
	switch {
	case namespace == "kube-system" || namespace == "kube-public" || namespace == "kube-node-lease" || namespace == mesh.Namespace:
		return "namespace of the cluster or of the control plane"
	case pod.Spec.HostNetwork:
		return "on the host's network, whose connections are not the pod's"
	case injected(pod):
		return "has a proxy already"
	}
	switch pod.Labels[istiocompat.PodInjectionLabel] {
	case "true":
		return ""
	case "false":
		return "label " + istiocompat.PodInjectionLabel + " is false"
	}
	// Istio's older way, which is still common in manifests.
	if pod.Annotations[istiocompat.PodInjectionLabel] == "false" {
		return "annotation " + istiocompat.PodInjectionLabel + " is false"
	}
	if namespaceLabels[istiocompat.InjectionLabel] == "enabled" || namespaceLabels[mesh.InjectionLabel] == "enabled" {
		return ""
	}
	return "neither its namespace nor the pod asks for a proxy"
}

// LeavesAlone says why injection adds no proxy to a pod of a namespace with these labels; nothing if it adds one.
func LeavesAlone(pod *core.Pod, namespace string, namespaceLabels map[string]string) string {
	return skipReason(pod, namespace, namespaceLabels)
}

// deliveryOf says how the proxy gets its certificate. The pod's own label overrides its namespace's.
func deliveryOf(pod *core.Pod, namespaceLabels map[string]string) (delivery.Way, error) {
	way := cmp.Or(pod.Labels[delivery.Label], namespaceLabels[delivery.Label])
	switch {
	case way == "" || way == "agent":
		return delivery.ByAgent, nil
	case way != string(delivery.BySecret):
		return "", fmt.Errorf("label %s is %q; it may be agent or secret", delivery.Label, way)
	case namespaceLabels[mesh.SecretsLabel] == "disabled":
		return "", fmt.Errorf("label %s is secret, but label %s of the namespace is disabled: there is no Secret to mount", delivery.Label, mesh.SecretsLabel)
	}
	return delivery.BySecret, nil
}

// checkChoices says what is wrong with what the pod's annotations choose of how its requests are treated. Whatever is misspelt would have no effect.
func checkChoices(pod *core.Pod) error {
	if got := pod.Annotations[mesh.PathsAnnotation]; got != "" && got != mesh.PathsAsSent && got != mesh.PathsNormalized {
		return fmt.Errorf("annotation %s is %q; it may be %s or %s", mesh.PathsAnnotation, got, mesh.PathsAsSent, mesh.PathsNormalized)
	}
	if got := pod.Annotations[mesh.IdleAnnotation]; got != "" {
		if d, err := time.ParseDuration(got); err != nil || d < 0 {
			return fmt.Errorf("annotation %s is %q; it may be a duration, such as 90s, 30m or 12h", mesh.IdleAnnotation, got)
		}
	}
	if _, err := proxyprotocol.Ports(pod.Annotations[mesh.ProxyProtocolAnnotation]); err != nil {
		return fmt.Errorf("annotation %s: %w", mesh.ProxyProtocolAnnotation, err)
	}
	return nil
}

func injected(pod *core.Pod) bool {
	if pod.Annotations[istiocompat.StatusAnnotation] != "" {
		return true
	}
	for _, list := range [][]core.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			if c.Name == mesh.ProxyContainer {
				return true
			}
		}
	}
	return false
}
