package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
)

func (a *app) identity() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "identity POD", Short: "Show who has which identity and certificate, and revoke them", Args: cobra.ExactArgs(1),
		Long: "With the name of a pod, shows the certificate that its node's agent has for it. A pod that is called as a\ncommand is (list, show, …) is named pod/NAME.",
		Example: "  meshctl identity -n finance payroll-6d5f\n  meshctl identity -n finance deploy/payroll\n" +
			"  meshctl identity list --state late\n  meshctl identity revoke -n finance payroll-6d5f --reason stolen",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			w, err := podIdentity(cmd.Context(), client, namespace, args[0])
			if err != nil {
				return err
			}
			return a.out.Value(output, w, func(out *printer.Printer) {
				t := out.Table()
				defer t.Flush()
				t.Row("Pod:", w.Namespace+"/"+w.Pod)
				writeWorkload(t, w.Workload)
			})
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	outputFlag(cmd, &output)
	cmd.AddCommand(a.identityList(), a.identityShow(), a.identityRevoke(), a.identityRevocations(), a.identityRestore())
	return cmd
}

// writeWorkload writes what the agent says of a pod's certificate, a line each.
func writeWorkload(t *printer.Table, w identities.Workload) {
	t.Row("Identity:", w.Identity)
	t.Row("Serial:", cmp.Or(w.Serial, "none yet"))
	if w.NotBefore != nil && w.NotAfter != nil {
		t.Row("Issuer:", fmt.Sprintf("%s (key %s)", w.Issuer, w.IssuerKeyID))
		t.Row("Valid:", fmt.Sprintf("%s to %s (%s)", w.NotBefore.Format(time.RFC3339), w.NotAfter.Format(time.RFC3339), left(*w.NotAfter)))
	}
	t.Row("State:", fmt.Sprintf("%s, since %s", w.State, w.Since.Format(time.RFC3339)))
	if w.NextRenewal != nil {
		t.Row("Next rotation:", w.NextRenewal.Format(time.RFC3339))
	}
	if w.LastError != "" {
		t.Row("Last error:", fmt.Sprintf("%s, after %d failures", w.LastError, w.Failures))
	}
}

// podDetail is a pod's identity with the certificates of its chain in PEM, as its node's agent shows it.
type podDetail struct {
	identities.Workload
	Chain []string `json:"chain,omitempty"`

	pod *corev1.Pod
}

// podIdentity asks the agent of the pod's node.
func podIdentity(ctx context.Context, client *kube.Client, namespace, name string) (*podDetail, error) {
	name, err := podName(ctx, client, namespace, name)
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("looking for the pod: %w", err)
	}
	if pod.Spec.NodeName == "" {
		return nil, fmt.Errorf("pod %s/%s is on no node yet", namespace, name)
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
		d := podDetail{pod: pod}
		if err := conn.GetJSON(ctx, "/v1/workloads/"+string(pod.UID), &d); err != nil {
			return nil, fmt.Errorf("asking the agent of node %s about pod %s/%s (if it is not in the mesh: is the namespace labelled for injection, and was the pod made after that?): %w", pod.Spec.NodeName, namespace, name, err)
		}
		return &d, nil
	}
	return nil, fmt.Errorf("no ready agent on node %s of pod %s/%s: see kubectl -n bulwark-system get pods -o wide", pod.Spec.NodeName, namespace, name)
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
		return "", fmt.Errorf("looking for the deployment's pods: %w", err)
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			return pod.Name, nil
		}
	}
	return "", fmt.Errorf("deployment %s/%s has no pod", namespace, deployment)
}
