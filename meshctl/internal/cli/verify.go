package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// finding is the outcome of one check of an installation.
type finding struct {
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func (a *app) verify() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that an installation is whole and works", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			findings := verify(cmd.Context(), client)
			err = a.out.Value(output, findings, func(out *printer.Printer) {
				t := out.Table()
				defer t.Flush()
				for _, f := range findings {
					state := "ok"
					if !f.OK {
						state = "FAILED"
					}
					t.Row(state, f.Check, f.Detail)
					if f.Remedy != "" {
						t.Row("", "", f.Remedy)
					}
				}
			})
			if err != nil {
				return err
			}
			for _, f := range findings {
				if !f.OK {
					return errors.New("the installation is not whole")
				}
			}
			return nil
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func verify(ctx context.Context, client *kube.Client) []finding {
	const again = "run: meshctl install"
	var out []finding
	add := func(check, missing string, err error, remedy string) {
		f := finding{Check: check, OK: missing == "" && err == nil, Detail: missing}
		if err != nil {
			f.Detail = err.Error()
		}
		if !f.OK {
			f.Remedy = remedy
		}
		out = append(out, f)
	}
	crds, err := chart.CRDs()
	add("built-in manifests", "", err, "use a meshctl built with make")
	for _, crd := range crds {
		ok, err := client.Established(ctx, crd.GetName())
		missing := ""
		if !ok {
			missing = "not established"
		}
		add("CRD "+crd.GetName(), missing, err, again)
	}
	for _, component := range components {
		missing, err := client.Rollout(ctx, component.kind, "bulwark-"+component.name)
		add(component.name, missing, err, again+"; logs: kubectl -n "+mesh.Namespace+" logs -l app.kubernetes.io/name="+component.name)
	}
	add("injection and validation", "", webhooksOnce(ctx, client), again)
	_, err = client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	add("trust bundle", "", err, "see the logs of citadel")
	missing, err := accountsWithoutSecret(ctx, client)
	add("workload Secrets", missing, err, "see the logs of citadel")
	return out
}

func webhooksOnce(ctx context.Context, client *kube.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return webhooksAnswer(ctx, client)
}

// accountsWithoutSecret names the first service account without its Secret.
func accountsWithoutSecret(ctx context.Context, client *kube.Client) (string, error) {
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: mesh.SecretsLabel + "!=disabled"})
	if err != nil {
		return "", err
	}
	secrets, err := client.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "type=" + mesh.SecretType})
	if err != nil {
		return "", err
	}
	have := map[string]bool{}
	for _, s := range secrets.Items {
		have[s.Namespace+"/"+s.Name] = true
	}
	for _, namespace := range namespaces.Items {
		if namespace.DeletionTimestamp != nil {
			continue
		}
		accounts, err := client.CoreV1().ServiceAccounts(namespace.Name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, account := range accounts.Items {
			if !have[namespace.Name+"/"+mesh.SecretPrefix+account.Name] {
				return fmt.Sprintf("service account %s/%s has none", namespace.Name, account.Name), nil
			}
		}
	}
	return "", nil
}
