// Package cli holds the commands of meshctl, one file each.
package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/klog/v2"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/pkg/version"
)

// app is what the commands share: which cluster, and how to print.
type app struct {
	cluster kube.Options
}

// Root returns the whole command line.
func Root() *cobra.Command {
	a := &app{}
	// What client-go logs, such as the end of a forwarded connection, is not for the user: what matters is returned.
	klog.SetLogger(logr.Discard())
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "Operate a Bulwark mesh",
		Long: "meshctl installs Bulwark into a Kubernetes cluster and shows what the mesh does.\n" +
			"It uses the cluster and credentials of your kubeconfig, as kubectl does.",
		Version: version.String(), SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&a.cluster.Kubeconfig, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, then ~/.kube/config)")
	root.PersistentFlags().StringVar(&a.cluster.Context, "context", "", "context of the kubeconfig")
	root.AddCommand(a.install(), a.uninstall(), a.verify(), a.status(), a.identity(), a.ca(), a.audit(), a.dashboard(), a.version())
	return root
}

func (a *app) connect(ctx context.Context) (*kube.Client, error) { return kube.Connect(ctx, a.cluster) }

// toMixer opens a way to Mixer's operator API. Close it.
func (a *app) toMixer(ctx context.Context) (*operator.Connection, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := operator.Pods(ctx, client, "mixer")
	if err != nil {
		return nil, err
	}
	return operator.Connect(ctx, client, &pods[0])
}

// outputFlag adds -o with the formats that every listing has.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table, json or yaml")
}

// print writes v in the chosen format; table is used when that is the choice.
func print(w io.Writer, output string, v any, table func(io.Writer)) error {
	switch output {
	case "table":
		tw := printers.GetNewTabWriter(w)
		table(tw)
		return tw.Flush()
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	case "yaml":
		content, err := sigsyaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	default:
		return fmt.Errorf("--output %s: use table, json or yaml", output)
	}
}
