package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
)

// workload is one pod with an identity, as its node's agent shows it.
type workload struct {
	Namespace      string    `json:"namespace"`
	Pod            string    `json:"pod"`
	UID            string    `json:"uid"`
	ServiceAccount string    `json:"serviceAccount"`
	Identity       string    `json:"identity"`
	Serial         string    `json:"serial"`
	NotBefore      time.Time `json:"notBefore"`
	NotAfter       time.Time `json:"notAfter"`
	Issuer         string    `json:"issuer"`
	State          string    `json:"state"`
	LastError      string    `json:"lastError,omitempty"`
}

func (a *app) identity() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "identity POD", Short: "Show the certificate that a pod has", Args: cobra.ExactArgs(1),
		Example: "  meshctl identity -n finance payroll-6d5f\n  meshctl identity -n finance deploy/payroll",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			w, err := podIdentity(cmd.Context(), client, namespace, args[0])
			if err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), output, w, func(out io.Writer) {
				fmt.Fprintf(out, "Pod:\t%s/%s\n", w.Namespace, w.Pod)
				fmt.Fprintf(out, "Identity:\t%s\n", w.Identity)
				fmt.Fprintf(out, "Serial:\t%s\n", w.Serial)
				fmt.Fprintf(out, "Issuer:\t%s\n", w.Issuer)
				fmt.Fprintf(out, "Valid:\t%s to %s (%s left)\n", w.NotBefore.Format(time.RFC3339), w.NotAfter.Format(time.RFC3339), time.Until(w.NotAfter).Round(time.Second))
				fmt.Fprintf(out, "State:\t%s\n", w.State)
				if w.LastError != "" {
					fmt.Fprintf(out, "Last error:\t%s\n", w.LastError)
				}
			})
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	outputFlag(cmd, &output)
	return cmd
}

func podIdentity(ctx context.Context, client *kube.Client, namespace, name string) (*workload, error) {
	name, err := podName(ctx, client, namespace, name)
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("looking for the pod: %w", err)
	}
	agents, err := operator.Pods(ctx, client, "agent")
	if err != nil {
		return nil, err
	}
	for _, agent := range agents {
		if agent.Spec.NodeName != pod.Spec.NodeName {
			continue
		}
		conn, err := operator.Connect(ctx, client, &agent)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		var workloads []workload
		if err := conn.GetJSON(ctx, "/v1/workloads", &workloads); err != nil {
			return nil, fmt.Errorf("asking agent %s: %w", agent.Name, err)
		}
		for _, w := range workloads {
			if w.UID == string(pod.UID) {
				return &w, nil
			}
		}
		return nil, fmt.Errorf("the agent of node %s knows no identity of pod %s/%s: is the namespace labelled for injection, and was the pod made after that?", pod.Spec.NodeName, namespace, name)
	}
	return nil, fmt.Errorf("no ready agent on node %s of pod %s/%s", pod.Spec.NodeName, namespace, name)
}

// podName turns deploy/NAME into the name of one of its pods.
func podName(ctx context.Context, client *kube.Client, namespace, name string) (string, error) {
	kind, deployment, found := strings.Cut(name, "/")
	switch {
	case !found:
		return name, nil
	case kind == "pod" || kind == "pods":
		return deployment, nil
	case kind != "deploy" && kind != "deployment":
		return "", fmt.Errorf("%s: name a pod, or deploy/NAME", name)
	}
	d, err := client.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("looking for the deployment: %w", err)
	}
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return "", err
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			return pod.Name, nil
		}
	}
	return "", fmt.Errorf("deployment %s/%s has no pod", namespace, deployment)
}
