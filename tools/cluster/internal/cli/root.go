// Package cli is the command line of cluster.
package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/cluster"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
)

// options common to all commands.
type options struct{ name, dir string }

func (o options) open(cmd *cobra.Command) (*cluster.Cluster, error) {
	if os.Geteuid() != 0 && cmd.Name() != "binaries" {
		return nil, fmt.Errorf("`cluster %s` makes and enters namespaces: run it as root", cmd.Name())
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, fmt.Errorf("find the checkout: %w", err)
	}
	return cluster.New(o.name, dir, cluster.NewProgress(cmd.ErrOrStderr()))
}

// Root command.
func Root() *cobra.Command {
	var opts options
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes cluster of several nodes on one Linux machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&opts.name, "name", "bulwark", "name of the cluster")
	root.PersistentFlags().StringVar(&opts.dir, "dir", ".", "checkout that has tools/cluster and gets .cluster/kubeconfig")
	root.AddCommand(up(&opts), down(&opts), status(&opts), load(&opts), restart(&opts), exec(&opts), buildBinaries(&opts), internal())
	return root
}

func up(opts *options) *cobra.Command {
	var nodes int
	var families string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make the cluster, or find it running; write .cluster/kubeconfig",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if env := os.Getenv("NODES"); env != "" && !cmd.Flags().Changed("nodes") {
				var err error
				if nodes, err = strconv.Atoi(env); err != nil {
					return fmt.Errorf("read NODES: %w", err)
				}
			}
			if !cmd.Flags().Changed("ip-families") {
				families = os.Getenv("IP_FAMILIES")
			}
			ip, err := network.ParseFamilies(families)
			if err != nil {
				return err
			}
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			return c.Up(cmd.Context(), nodes, ip)
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 0, fmt.Sprintf("number of nodes (default $NODES or %d)", cluster.DefaultNodes))
	cmd.Flags().StringVar(&families, "ip-families", "", fmt.Sprintf("%s, or %s for addresses of IPv6, too (default $IP_FAMILIES or %[1]s)", network.IPv4, network.Dual))
	return cmd
}

func down(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove the cluster without a trace",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			return c.Down(cmd.Context())
		},
	}
}

func status(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the running cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			status, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintf(out, "API server\t%s\n", status.Server)
			for _, node := range status.Nodes {
				fmt.Fprintf(out, "%s\tready=%t\t%s\n", node.Name, node.Ready, node.Version)
			}
			return out.Flush()
		},
	}
}

func restart(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "restart <process>",
		Short: "Kill one of the cluster's processes, such as kube-apiserver, and start it again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			return c.Restart(cmd.Context(), args[0])
		},
	}
}

func load(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "load <image.tar>...",
		Short: "Load image archives into every node that does not have them yet",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, archives []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			return c.Load(cmd.Context(), archives)
		},
	}
}

func buildBinaries(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "binaries",
		Short: "Build the cluster's programs, unless the cache has them, and print where they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			set, err := c.Binaries(cmd.Context())
			if err != nil {
				return err
			}
			for _, dir := range slices.Sorted(maps.Values(set)) {
				fmt.Fprintln(cmd.OutOrStdout(), dir)
			}
			return nil
		},
	}
}
