// Package cli holds the commands of meshctl, one file each.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/version"
)

// app is what the commands share: which cluster, and how to print.
type app struct {
	cluster kube.Options
	out     *printer.Printer // what was asked for
	notes   *printer.Printer // what else there is to say, on the error output
}

// Run runs one command line and returns the status to exit with: 1 if the command failed, or its output could not be written. Commands whose answer is
// yes or no say more by it; see status.
func Run(ctx context.Context, args []string, in io.Reader, out, notes io.Writer) int {
	a := &app{out: printer.New(out), notes: printer.New(notes)}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(a.out.Plain())
	root.SetErr(a.notes.Plain())
	err := cmp.Or(root.ExecuteContext(ctx), a.out.Err())
	var s status
	switch {
	case err == nil:
		return 0
	case errors.As(err, &s) && s.error == nil:
		return s.code
	}
	a.notes.Failure(explained(err))
	return max(1, s.code)
}

// explained is an error with the kind of failure before it, if it has one: forbidden, not found, not running or unreachable.
func explained(err error) string {
	if kind := kube.FailureOf(err); kind != kube.Other && !strings.HasPrefix(err.Error(), string(kind)) {
		return string(kind) + ": " + err.Error()
	}
	return err.Error()
}

func (a *app) root() *cobra.Command {
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
	root.AddCommand(a.install(), a.uninstall(), a.verify(), a.status(), a.reach(), a.wait(), a.inject(), a.checkInject(), a.identity(), a.ca(), a.audit(), a.analyze(), a.authz(), a.pilot(), a.dashboard(), a.version())
	return root
}

func (a *app) connect(ctx context.Context) (*kube.Client, error) { return kube.Connect(ctx, a.cluster) }

// toMixer opens a way to Mixer's operator API. Close it.
func (a *app) toMixer(ctx context.Context) (*operator.Connection, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	return mixerOf(ctx, client)
}

// mixerOf is toMixer in a cluster that is connected to already.
func mixerOf(ctx context.Context, client *kube.Client) (*operator.Connection, error) {
	pods, err := operator.Pods(ctx, client, "mixer")
	if err != nil {
		return nil, err
	}
	return operator.Connect(ctx, client, &pods[0])
}

// askPilot asks any Pilot, as each answers for all of them.
func askPilot(ctx context.Context, client *kube.Client, path string, query url.Values, answer any) error {
	pods, err := operator.Pods(ctx, client, "pilot")
	if err != nil {
		return err
	}
	conn, err := operator.Connect(ctx, client, &pods[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.GetJSON(ctx, path+"?"+query.Encode(), answer); err != nil {
		return fmt.Errorf("asking pod %s: %w", pods[0].Name, err)
	}
	return nil
}

// group is a command that does nothing but hold others. Without one that it knows it fails, so that no script takes a
// misspelt command for one that did its work.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				names = append(names, c.Name())
			}
		}
		if len(args) > 0 {
			return fmt.Errorf("%s: there is no command %s; use %s", cmd.CommandPath(), strconv.Quote(args[0]), strings.Join(names, ", "))
		}
		return fmt.Errorf("%s: which command? use %s", cmd.CommandPath(), strings.Join(names, ", "))
	}}
}

// outputFlag adds -o with the formats that every listing has.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table, json or yaml")
}
