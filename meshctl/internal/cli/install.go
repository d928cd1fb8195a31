package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/precheck"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// components in the order in which they become ready.
var components = []struct{ name, kind string }{
	{"citadel", "Deployment"}, {"pilot", "Deployment"}, {"mixer", "Deployment"}, {"agent", "DaemonSet"}, {"cni", "DaemonSet"},
}

type installOptions struct {
	values, set         []string
	dryRun, diff, reset bool
	timeout             time.Duration
}

func (a *app) install() *cobra.Command {
	var o installOptions
	cmd := &cobra.Command{
		Use: "install", Short: "Install Bulwark, or bring an installation to these settings", Args: cobra.NoArgs,
		Long: "Installs the control plane into the namespace " + mesh.Namespace + " and waits until it is ready.\n" +
			"Running it again is safe: it finishes an installation that failed. Settings given once stay until they are changed, taken\n" +
			"back to their default (--set KEY=null) or all forgotten (--reset).",
		Example: "  meshctl install\n  meshctl install --set mtls=strict\n  meshctl install --values mesh.yaml --diff",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runInstall(cmd.Context(), cmd.InOrStdin(), o) },
	}
	cmd.Flags().StringArrayVarP(&o.values, "values", "f", nil, "YAML file of settings, - for the input (may be repeated)")
	cmd.Flags().StringArrayVar(&o.set, "set", nil, "one setting, key=value (may be repeated)")
	cmd.Flags().BoolVar(&o.reset, "reset", false, "forget the settings of before: what is not given now is the default")
	cmd.Flags().BoolVar(&o.diff, "diff", false, "show what would change in the cluster, and change nothing")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be applied and change nothing; without a cluster, for a new one")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait until everything is ready")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "diff")
	return cmd
}

func (a *app) runInstall(ctx context.Context, in io.Reader, o installOptions) error {
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout %s: use how long to wait", o.timeout)
	}
	client, err := a.connect(ctx)
	if err != nil && !o.dryRun {
		return err
	}
	var before *installation
	if client != nil {
		if before, err = installed(ctx, client); err != nil {
			return err
		}
	} else {
		a.notes.Line("note: this is for a new installation, as no cluster could be asked for the settings of one that is there: %s", err)
	}
	values, err := before.with(o, in)
	if err != nil {
		return err
	}
	redirection, err := redirectionBy(ctx, client, values)
	if err != nil {
		return err
	}
	objects, err := chart.All(values, map[string]any{"cni": redirection.cni})
	if err != nil {
		return err
	}
	if err := before.admits(values); err != nil {
		return err
	}
	if o.dryRun {
		return printYAML(a.out, objects)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	p := &progress{out: a.out, start: time.Now()}
	gone, err := before.superfluous(objects)
	if err != nil {
		return err
	}
	if o.diff {
		return a.showDiff(ctx, client, before, values, objects, gone)
	}
	if err := p.step("checking the cluster", func() error { return check(ctx, client, values) }); err != nil {
		return err
	}
	for _, line := range before.changes(values) {
		a.out.Line("  %s", line)
	}
	a.out.Line("  %s", redirection)
	var crds, workloads, hooks, policies []*unstructured.Unstructured
	for _, object := range objects {
		switch object.GetKind() {
		case "CustomResourceDefinition":
			crds = append(crds, object)
		case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
			hooks = append(hooks, object)
		case "PeerAuthentication":
			policies = append(policies, object)
		default:
			workloads = append(workloads, object)
		}
	}
	steps := []step{
		{"custom resource definitions", func() error { return applyCRDs(ctx, client, crds) }},
		{"control plane objects", func() error { return applyAll(ctx, client, workloads) }},
		{"webhooks", func() error { return applyAll(ctx, client, hooks) }},
	}
	for _, component := range components {
		if component.name == "cni" && redirection.cni != "on" {
			continue
		}
		steps = append(steps, step{component.name, func() error {
			return kube.Poll(ctx, func(ctx context.Context) (string, error) {
				missing, err := client.Rollout(ctx, component.kind, "bulwark-"+component.name)
				if missing != "" && component.name == "cni" {
					missing += "; why: kubectl -n " + mesh.Namespace + " logs -l app.kubernetes.io/name=cni; other directories: --set cniDirs.conf=DIR,cniDirs.bin=DIR; without it: --set cni=off"
				}
				return missing, err
			})
		}})
	}
	steps = append(steps,
		step{"injection and validation", func() error { return webhooksAnswer(ctx, client) }},
		step{"mesh-wide policy", func() error { return errors.Join(applyAll(ctx, client, policies), deleteAll(ctx, client, gone)) }})
	if err := p.all(steps); err != nil {
		return unfinished(err)
	}
	a.out.Line("Bulwark is ready (%.1f s).", time.Since(p.start).Seconds())
	return nil
}

func unfinished(err error) error {
	return fmt.Errorf("the installation is not finished: %w (run `meshctl install` again to go on, or `meshctl uninstall` to undo it)", err)
}

func check(ctx context.Context, client *kube.Client, values map[string]any) error {
	class, _, _ := unstructured.NestedString(values, "mixer", "storage", "storageClass")
	return firstError(
		func() error { return precheck.Version(client) },
		func() error { return precheck.Rights(ctx, client) },
		func() error { return precheck.OtherMesh(ctx, client) },
		func() error { return precheck.Storage(ctx, client, class) },
	)
}

func firstError(checks ...func() error) error {
	for _, c := range checks {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

func applyAll(ctx context.Context, client *kube.Client, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		if err := client.Apply(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func applyCRDs(ctx context.Context, client *kube.Client, crds []*unstructured.Unstructured) error {
	if err := applyAll(ctx, client, crds); err != nil {
		return err
	}
	return kube.Poll(ctx, func(ctx context.Context) (string, error) {
		for _, crd := range crds {
			ok, err := client.Established(ctx, crd.GetName())
			if apierrors.IsNotFound(err) { // an earlier one was still being removed when it was applied
				return crd.GetName() + " is being removed", client.Apply(ctx, crd)
			}
			if err != nil {
				return "", err
			}
			if !ok {
				return crd.GetName() + " is not established", nil
			}
		}
		return "", nil
	})
}

// webhooksAnswer waits until the API server can call Pilot: both configurations have the mesh's root, and a pod and a
// policy that are not kept (dry run) come through.
func webhooksAnswer(ctx context.Context, client *kube.Client) error {
	return kube.Poll(ctx, func(ctx context.Context) (string, error) {
		mutating, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, mesh.WebhookConfiguration, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		validating, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, mesh.WebhookConfiguration, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		for _, w := range mutating.Webhooks {
			if len(w.ClientConfig.CABundle) == 0 {
				return "the injection webhook has no CA bundle yet", nil
			}
		}
		for _, w := range validating.Webhooks {
			if len(w.ClientConfig.CABundle) == 0 {
				return "the validation webhook has no CA bundle yet", nil
			}
		}
		probe := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
			"metadata": map[string]any{"name": "probe", "namespace": mesh.Namespace},
			"spec":     map[string]any{"mtls": map[string]any{"mode": "STRICT"}},
		}}
		err = client.DryRun(ctx, probe)
		if apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) {
			return "the validation webhook does not answer: " + err.Error(), nil
		}
		if err != nil && ctx.Err() == nil {
			return "the validation webhook: " + err.Error(), nil
		}
		return "", err
	})
}

func printYAML(out *printer.Printer, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		out.Line("---")
		if err := out.YAML(object.Object); err != nil {
			return err
		}
	}
	return out.Err()
}

// step is a part of a long command.
type step struct {
	what string
	do   func() error
}

// progress prints each step with what it took.
type progress struct {
	out   *printer.Printer
	start time.Time
}

// all takes steps until one fails.
func (p *progress) all(steps []step) error {
	for _, s := range steps {
		if err := p.step(s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

func (p *progress) step(what string, do func() error) error {
	began := time.Now()
	p.out.Begin("  %-28s", what)
	err := do()
	if err != nil {
		p.out.Line("failed")
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%s: not ready in time", what)
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	p.out.Line("ok  %5.1f s", time.Since(began).Seconds())
	return nil
}
