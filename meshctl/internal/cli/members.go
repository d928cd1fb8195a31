package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// membersEnding fails when pods are in the mesh, and says what is missing while the last of them end.
func membersEnding(ctx context.Context, client *kube.Client) (string, error) {
	pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	terminating := map[string]bool{}
	for _, n := range namespaces.Items {
		terminating[n.Name] = n.DeletionTimestamp != nil
	}
	staying, ending := map[string]int{}, 0
	for _, pod := range pods.Items {
		switch {
		case !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.CSI != nil && v.CSI.Driver == mesh.CSIDriver }):
		case pod.DeletionTimestamp == nil && !terminating[pod.Namespace]:
			staying[pod.Namespace]++
		default:
			ending++
		}
	}
	if len(staying) > 0 {
		names := slices.Sorted(maps.Keys(staying))
		return "", fmt.Errorf("pods of namespace %s are in the mesh, and could not end without its agent; take them out first (kubectl label namespace %s istio-injection- bulwark.dev/injection-; kubectl -n %s rollout restart deployment), or use --force",
			strings.Join(names, ", "), names[0], names[0])
	}
	if ending > 0 {
		return fmt.Sprintf("%d pods of the mesh are still ending", ending), nil
	}
	return "", nil
}

// remains is what a component keeps on a node: how its own program removes it, and in which of its volumes it is.
type remains struct {
	component, command string
	volumes            []string
}

// onNodes is what is on nodes. The keeper of the CNI plugin removes that itself when its DaemonSet is deleted, unless it could not.
var onNodes = []remains{{"agent", "cleanup", []string{"state", "run", "plugin"}}, {"cni", "remove", []string{"conf", "bin", "run"}}}

func (r remains) pods(ctx context.Context, client *kube.Client) ([]corev1.Pod, error) {
	pods, err := client.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + r.component})
	if err != nil {
		return nil, fmt.Errorf("listing the pods of %s: %w", r.component, err)
	}
	return pods.Items, nil
}

// cleaners are pods that remove what components keep on nodes, one for each component and node that has it.
func cleaners(ctx context.Context, client *kube.Client) ([]*corev1.Pod, error) {
	var out []*corev1.Pod
	for _, r := range onNodes {
		pods, err := r.pods(ctx, client)
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{"": true}
		for _, pod := range pods {
			if seen[pod.Spec.NodeName] { // one that ends, beside the one that replaces it; or one that has no node yet
				continue
			}
			seen[pod.Spec.NodeName] = true
			out = append(out, r.cleaner(pod))
		}
	}
	return out, nil
}

// cleaner is a pod that does it on the node of a pod of the component.
func (r remains) cleaner(of corev1.Pod) *corev1.Pod {
	container := of.Spec.Containers[0]
	container.Args = []string{r.command}
	container.StartupProbe, container.LivenessProbe, container.ReadinessProbe, container.Ports = nil, nil, nil, nil
	container.VolumeMounts = slices.DeleteFunc(slices.Clone(container.VolumeMounts), func(m corev1.VolumeMount) bool { return !slices.Contains(r.volumes, m.Name) })
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "bulwark-cleanup-" + r.component + "-" + of.Spec.NodeName, Namespace: mesh.Namespace, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue},
		},
		Spec: corev1.PodSpec{
			NodeName: of.Spec.NodeName, RestartPolicy: corev1.RestartPolicyNever, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			HostNetwork: of.Spec.HostNetwork, AutomountServiceAccountToken: new(bool), Containers: []corev1.Container{container},
			Volumes: slices.DeleteFunc(slices.Clone(of.Spec.Volumes), func(v corev1.Volume) bool { return !slices.Contains(r.volumes, v.Name) }),
		},
	}
}

// cleanLimit is short: where the image of a component could not be run, it has left nothing either.
const cleanLimit = 30 * time.Second

// clean waits until those are gone who would write again, and runs the cleaners.
func clean(ctx context.Context, client *kube.Client, cleaners []*corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, cleanLimit)
	defer cancel()
	pods := client.CoreV1().Pods(mesh.Namespace)
	err := kube.Poll(ctx, func(ctx context.Context) (string, error) {
		for _, r := range onNodes {
			running, err := r.pods(ctx, client)
			if err != nil || len(running) > 0 {
				return fmt.Sprintf("%d pods of %s are still running", len(running), r.component), err
			}
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	for _, pod := range cleaners {
		// One that an earlier, unfinished removal has left does the same.
		if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("cleaning node %s: %w", pod.Spec.NodeName, err)
		}
	}
	return kube.Poll(ctx, func(ctx context.Context) (string, error) {
		for _, pod := range cleaners {
			now, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
			if err != nil {
				return "", err
			}
			switch now.Status.Phase {
			case corev1.PodSucceeded:
			case corev1.PodFailed:
				return "", fmt.Errorf("cleaning node %s failed: %s", pod.Spec.NodeName, kube.PodTrouble(now))
			default:
				return fmt.Sprintf("node %s is not clean yet: %s", pod.Spec.NodeName, kube.PodTrouble(now)), nil
			}
		}
		return "", nil
	})
}
