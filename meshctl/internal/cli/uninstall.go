package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

type uninstallOptions struct {
	yes, keepCRDs, force bool
	timeout              time.Duration
}

func (a *app) uninstall() *cobra.Command {
	var o uninstallOptions
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Remove Bulwark and everything it made", Args: cobra.NoArgs,
		Long: "Removes the control plane, the workload Secrets and trust bundles of all namespaces, what the agents keep on\n" +
			"the nodes, and the CRDs. Pods must have left the mesh before: without the agent, kubelet cannot unmount their volume.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runUninstall(cmd.Context(), cmd.InOrStdin(), o)
		},
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask before policies are deleted with their CRDs")
	cmd.Flags().BoolVar(&o.force, "force", false, "go on although pods are in the mesh; they will not end by themselves")
	cmd.Flags().BoolVar(&o.keepCRDs, "keep-crds", false, "leave the CRDs and the policies")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 3*time.Minute, "how long to wait until everything is gone")
	return cmd
}

func (a *app) runUninstall(ctx context.Context, in io.Reader, o uninstallOptions) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	crds, err := chart.CRDs()
	if err != nil {
		return err
	}
	if !o.force {
		if err := kube.Poll(ctx, func(ctx context.Context) (string, error) { return membersEnding(ctx, client) }); err != nil {
			return err
		}
	}
	if !o.keepCRDs && !o.yes {
		if err := confirm(ctx, client, crds, in, a.out); err != nil {
			return err
		}
	}
	objects, err := chart.Everything()
	if err != nil {
		return err
	}
	pods, err := cleaners(ctx, client)
	if err != nil {
		return err
	}
	var hooks, others []*unstructured.Unstructured
	for _, object := range objects {
		if strings.HasSuffix(object.GetKind(), "WebhookConfiguration") {
			hooks = append(hooks, object) // first: they must not stop what follows
		} else {
			others = append(others, object)
		}
	}
	steps := []step{
		{"webhooks", func() error { return deleteAll(ctx, client, hooks) }},
		{"control plane objects", func() error { return deleteAll(ctx, client, others) }},
		{"nodes", func() error { return clean(ctx, client, pods) }},
		{"namespace " + mesh.Namespace, func() error { return deleteNamespace(ctx, client) }},
		{"Secrets and trust bundles", func() error { return deleteIdentities(ctx, client) }},
	}
	if !o.keepCRDs {
		steps = append(steps, step{"custom resource definitions", func() error { return deleteAll(ctx, client, crds) }})
	}
	p := &progress{out: a.out, start: time.Now()}
	err = p.all(steps)
	if err != nil {
		return fmt.Errorf("not everything is removed: %w (run `meshctl uninstall` again)", err)
	}
	a.out.Line("Bulwark is removed.")
	return nil
}

// confirm asks before objects that people made go with their CRDs.
func confirm(ctx context.Context, client *kube.Client, crds []*unstructured.Unstructured, in io.Reader, out *printer.Printer) error {
	total := 0
	for _, crd := range crds {
		n, err := client.Instances(ctx, crd)
		if err != nil {
			return err
		}
		if n > 0 {
			out.Line("%s: %d object(s)", crd.GetName(), n)
		}
		total += n
	}
	if total == 0 {
		return nil
	}
	out.Begin("Deleting the CRDs deletes these %d policies. Go on? [y/N] ", total)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was removed (use --keep-crds to keep the policies, --yes to delete them)")
	}
	return nil
}

func deleteAll(ctx context.Context, client *kube.Client, objects []*unstructured.Unstructured) error {
	for i := len(objects) - 1; i >= 0; i-- {
		if err := client.Delete(ctx, objects[i]); err != nil {
			return err
		}
	}
	return nil
}

func deleteNamespace(ctx context.Context, client *kube.Client) error {
	err := client.CoreV1().Namespaces().Delete(ctx, mesh.Namespace, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return kube.Poll(ctx, func(ctx context.Context) (string, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, mesh.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		return "it is still terminating", err
	})
}

// deleteIdentities runs when Citadel is gone, and nobody restores what is deleted.
func deleteIdentities(ctx context.Context, client *kube.Client) error {
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, namespace := range namespaces.Items {
		err := client.CoreV1().Secrets(namespace.Name).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "type=" + mesh.SecretType})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the workload Secrets of %s: %w", namespace.Name, err)
		}
		err = client.CoreV1().ConfigMaps(namespace.Name).Delete(ctx, mesh.TrustBundleConfig, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the trust bundle of %s: %w", namespace.Name, err)
		}
	}
	// Where the API server has no such things, there is nothing to find.
	err = client.CertificatesV1beta1().ClusterTrustBundles().Delete(ctx, mesh.ClusterTrustBundle, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the ClusterTrustBundle: %w", err)
	}
	return nil
}
