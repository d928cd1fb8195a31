package kube

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Rollout says what a workload of the control plane still lacks; empty when the applied version is what runs, ready.
func (c *Client) Rollout(ctx context.Context, kind, name string) (missing string, err error) {
	var generation, observed int64
	var want, updated, ready int32
	switch kind {
	case "Deployment":
		d, err := c.AppsV1().Deployments(mesh.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		want = 1
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		generation, observed = d.Generation, d.Status.ObservedGeneration
		updated, ready = d.Status.UpdatedReplicas, min(d.Status.ReadyReplicas, d.Status.AvailableReplicas)
		if d.Status.Replicas > updated {
			reason, err := c.whyNotReady(ctx, strings.TrimPrefix(name, "bulwark-"))
			return fmt.Sprintf("%s: old pods are still running%s", name, reason), err
		}
	case "DaemonSet":
		d, err := c.AppsV1().DaemonSets(mesh.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		generation, observed = d.Generation, d.Status.ObservedGeneration
		want, updated, ready = d.Status.DesiredNumberScheduled, d.Status.UpdatedNumberScheduled, d.Status.NumberReady
	default:
		return "", fmt.Errorf("no rollout of a %s", kind)
	}
	if observed >= generation && updated >= want && ready >= want {
		return "", nil
	}
	reason, err := c.whyNotReady(ctx, strings.TrimPrefix(name, "bulwark-"))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %d of %d ready%s", name, ready, want, reason), nil
}

// whyNotReady looks at the pods of a component for a reason that a person can act on.
func (c *Client) whyNotReady(ctx context.Context, component string) (string, error) {
	pods, err := c.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + component})
	if err != nil {
		return "", err
	}
	for _, pod := range pods.Items {
		if reason := PodTrouble(&pod); reason != "" {
			return "; pod " + pod.Name + ": " + reason, nil
		}
	}
	return "", nil
}

// PodTrouble returns why a pod does not run, empty when nothing is wrong or it is only starting.
func PodTrouble(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return "not scheduled: " + condition.Message
		}
	}
	for _, container := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if w := container.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			last := ""
			if t := container.LastTerminationState.Terminated; t != nil {
				last = fmt.Sprintf(" (exit code %d; kubectl -n %s logs %s -c %s --previous)", t.ExitCode, pod.Namespace, pod.Name, container.Name)
			}
			return strings.TrimSpace(w.Reason + ": " + w.Message + last)
		}
	}
	return ""
}
