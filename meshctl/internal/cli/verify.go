package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"

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
			f.Detail = explained(err)
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
		if component.name == "cni" && !usesCNI(ctx, client) {
			continue
		}
		missing, err := client.Rollout(ctx, component.kind, "bulwark-"+component.name)
		add(component.name, missing, err, again+"; logs: kubectl -n "+mesh.Namespace+" logs -l app.kubernetes.io/name="+component.name)
	}
	add("injection and validation", "", webhooksOnce(ctx, client), again)
	_, err = client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	add("trust bundle", "", err, "see the logs of citadel")
	missing, err := withoutSecret(ctx, client)
	add("workload Secrets", missing, err, "see the logs of citadel")
	return out
}

// usesCNI says whether pods are injected for the nodes' CNI plugin. If that cannot be found out, what is wrong is found elsewhere.
func usesCNI(ctx context.Context, client *kube.Client) bool {
	pilot, err := client.AppsV1().Deployments(mesh.Namespace).Get(ctx, mesh.PilotAccount, metav1.GetOptions{})
	return err == nil && slices.ContainsFunc(pilot.Spec.Template.Spec.Containers, func(c corev1.Container) bool { return slices.Contains(c.Args, "--inject.cni=true") })
}

func webhooksOnce(ctx context.Context, client *kube.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return webhooksAnswer(ctx, client)
}

// wantedSecret is an account that is to have a Secret, as Citadel's operator API shows it.
type wantedSecret struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Secret         string `json:"secret"`
	Trouble        string `json:"trouble"`
}

// secretsWithin is how long a new account may be without its Secret here.
const secretsWithin = 5 * time.Second

// withoutSecret says which service accounts lack the Secret that they are to have. Who is to have one, Citadel says.
func withoutSecret(ctx context.Context, client *kube.Client) (string, error) {
	conn, _, err := toLeader(ctx, client)
	if err != nil {
		return "", fmt.Errorf("who is to have a Secret is not known: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, secretsWithin)
	defer cancel()
	err = kube.Poll(ctx, func(ctx context.Context) (string, error) {
		var wanted []wantedSecret
		if err := conn.GetJSON(ctx, "/v1/secrets/wanted", &wanted); err != nil {
			return "", fmt.Errorf("asking Citadel who is to have a Secret: %w", err)
		}
		have, err := secretNames(ctx, client)
		if err != nil {
			return "", err
		}
		return lacking(wanted, have), nil
	})
	if ctx.Err() != nil && err != nil {
		return err.Error(), nil
	}
	return "", err
}

// lacking names the first account without its Secret, and how many others there are.
func lacking(wanted []wantedSecret, have map[string]bool) string {
	first, n := "", 0
	for _, w := range wanted {
		if have[w.Namespace+"/"+w.Secret] {
			continue
		}
		if n++; n > 1 {
			continue
		}
		first = fmt.Sprintf("service account %s/%s has no Secret", w.Namespace, w.ServiceAccount)
		if w.Trouble != "" {
			first += ": " + w.Trouble
		}
	}
	if n > 1 {
		first += fmt.Sprintf(" (and %d others)", n-1)
	}
	return first
}

// secretNames lists the workload Secrets, in pages.
func secretNames(ctx context.Context, client *kube.Client) (map[string]bool, error) {
	have := map[string]bool{}
	list := pager.New(pager.SimplePageFunc(func(o metav1.ListOptions) (runtime.Object, error) {
		return client.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, o)
	}))
	err := list.EachListItem(ctx, metav1.ListOptions{FieldSelector: "type=" + mesh.SecretType}, func(o runtime.Object) error {
		if s, ok := o.(*corev1.Secret); ok {
			have[s.Namespace+"/"+s.Name] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the workload Secrets: %w", err)
	}
	return have, nil
}
