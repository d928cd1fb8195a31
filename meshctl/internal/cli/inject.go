package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/inject"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func (a *app) inject() *cobra.Command {
	var file, namespace string
	var files, set []string
	var ipv6 bool
	cmd := &cobra.Command{
		Use: "inject -f FILE", Short: "Print manifests with the proxies that injection would add, without a cluster",
		Long: "What is printed is what the webhook makes of pods, and of the pods of Deployments, StatefulSets, DaemonSets, Jobs and CronJobs; other objects are printed as they are.\n" +
			"The namespace's own wish for injection is taken for granted; a pod's label is heeded. Pods that have a proxy are left alone, by the webhook, too.\n" +
			"Give the values that the mesh was installed with: images, trust domain and redirection follow from them.",
		Example: "  meshctl inject -f deployment.yaml --set image.tag=v1.2.3 | kubectl apply -f -",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return errors.New("name a file with -f, or - for the input")
			}
			values, err := chart.Values(nil, files, set, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return a.injectManifests(cmd.InOrStdin(), file, namespace, values, ipv6)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file of manifests; - is the input")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of objects that name none")
	cmd.Flags().StringArrayVar(&files, "values", nil, "file of values, as for install")
	cmd.Flags().StringArrayVar(&set, "set", nil, "value, as for install")
	cmd.Flags().BoolVar(&ipv6, "ipv6", false, "Services of the cluster have addresses of IPv6 (where the webhook injects, Pilot sees that)")
	return cmd
}

func (a *app) injectManifests(in io.Reader, file, namespace string, values map[string]any, ipv6 bool) error {
	config, err := injection(values)
	if err != nil {
		return err
	}
	config.IPv6 = ipv6
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("reading the manifests: %w", err)
		}
		defer f.Close()
		in = f
	}
	objects, err := chart.Decode(in)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for i, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("%s: %w", what(o), err)
		}
		ns := inject.Namespace{Name: o.GetNamespace(), Labels: map[string]string{mesh.InjectionLabel: "enabled"}}
		if ns.Name == "" {
			ns.Name = namespace
		}
		out, v, err := inject.Object(text, ns, config)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what(o), err)
		case v.Refused != "":
			return fmt.Errorf("%s would be refused: %s", what(o), v.Refused)
		}
		for _, advice := range v.Advice {
			a.notes.Line("%s: %s", what(o), advice)
		}
		var shown map[string]any
		if err := json.Unmarshal(out, &shown); err != nil {
			return fmt.Errorf("%s: %w", what(o), err)
		}
		if i > 0 {
			a.out.Line("---")
		}
		if err := a.out.YAML(shown); err != nil {
			return fmt.Errorf("%s: %w", what(o), err)
		}
	}
	return nil
}

func what(o *unstructured.Unstructured) string {
	return strings.ToLower(o.GetKind()) + "/" + o.GetName()
}

// injection is what Pilot is told by an installation with these values.
func injection(values map[string]any) (inject.Config, error) {
	c := inject.Defaults
	objects, err := chart.Render(values)
	if err != nil {
		return c, err
	}
	for _, o := range objects {
		if o.GetKind() != "Deployment" || o.GetName() != mesh.PilotAccount {
			continue
		}
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, container := range containers {
			args, _, _ := unstructured.NestedStringSlice(container.(map[string]any), "args")
			for _, arg := range args {
				name, value, _ := strings.Cut(arg, "=")
				if to, ok := map[string]*string{"--inject.proxyImage": &c.ProxyImage, "--inject.agentImage": &c.AgentImage, "--inject.pullPolicy": &c.PullPolicy, "--inject.cpu": &c.ProxyCPU,
					"--inject.cpuLimit": &c.ProxyCPUMax, "--inject.memory": &c.ProxyMemory, "--inject.memoryLimit": &c.ProxyMemoryMax, "--trustDomain": &c.TrustDomain}[name]; ok {
					*to = value
				}
				c.LoadBalancers = c.LoadBalancers || name == "--load-balancers"
				c.CNI = c.CNI || name == "--inject.cni" && value == "true"
			}
		}
	}
	if c.ProxyImage == "" {
		return c, errors.New("the chart says nothing of the proxy's image")
	}
	return c, nil
}

// checked is what check-inject prints.
type checked struct {
	Object   string         `json:"object"`
	HasProxy bool           `json:"hasProxy"`
	Verdict  inject.Verdict `json:"verdict"` // of a new pod
	Webhook  string         `json:"webhook"` // empty if there is nothing to say about it
}

func (a *app) checkInject() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "check-inject POD|deploy/NAME", Short: "Say whether a workload's pods get a proxy, and why or why not",
		Example: "  meshctl check-inject -n finance deploy/payroll",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			got, err := a.checkInjection(cmd.Context(), namespace, args[0])
			if err != nil {
				return err
			}
			return a.out.Value(output, got, func(out *printer.Printer) { showChecked(out, got) })
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workload")
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) checkInjection(ctx context.Context, namespace, name string) (checked, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return checked{}, err
	}
	out := checked{Object: namespace + "/" + name}
	var made corev1.Pod // as a controller would make it, or as it was sent
	if kind, deployment, found := strings.Cut(name, "/"); found && strings.HasPrefix(kind, "deploy") {
		var d *appsv1.Deployment
		if d, err = client.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{}); err != nil {
			return out, fmt.Errorf("looking for the deployment: %w", err)
		}
		made = corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
	}
	pod, err := podName(ctx, client, namespace, name)
	if err == nil {
		stored, err := client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return out, fmt.Errorf("looking for the pod: %w", err)
		}
		out.HasProxy = stored.Annotations[istiocompat.StatusAnnotation] != ""
		if made.Spec.Containers == nil {
			made = *stored
		}
	} else if made.Spec.Containers == nil {
		return out, err
	}
	ns, err := client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return out, fmt.Errorf("looking for the namespace: %w", err)
	}
	made.Kind = "Pod"
	text, err := json.Marshal(made)
	if err != nil {
		return out, fmt.Errorf("encoding the pod: %w", err)
	}
	if _, out.Verdict, err = inject.Object(text, inject.Namespace{Name: namespace, Labels: ns.Labels}, inject.Defaults); err != nil {
		return out, err
	}
	switch hooks, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, mesh.WebhookConfiguration, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
		out.Webhook = "there is no webhook for injection: install Bulwark with `meshctl install`"
	case err != nil:
		return out, fmt.Errorf("looking for the webhook: %w", err)
	case len(hooks.Webhooks) == 0 || len(hooks.Webhooks[0].ClientConfig.CABundle) == 0:
		out.Webhook = "the webhook for injection has no certificate to trust yet: see `meshctl verify`"
	}
	return out, nil
}

func showChecked(out *printer.Printer, c checked) {
	switch v := c.Verdict; {
	case v.LeftAlone != "" && c.HasProxy:
		out.Line("%s has a proxy", c.Object)
	case v.LeftAlone != "":
		out.Line("%s gets no proxy: %s", c.Object, v.LeftAlone)
	case v.Refused != "":
		out.Line("%s: new pods will be refused: %s", c.Object, v.Refused)
	case c.HasProxy:
		out.Line("%s has a proxy, and new pods get one", c.Object)
	default:
		out.Line("%s has no proxy, and new pods get one: it was made before its namespace or its pod asked for a proxy; restart it", c.Object)
	}
	for _, advice := range c.Verdict.Advice {
		out.Line("  %s", advice)
	}
	if c.Webhook != "" {
		out.Line("  %s", c.Webhook)
	}
}
