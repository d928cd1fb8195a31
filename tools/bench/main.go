// Command bench measures an installation of Bulwark; docs/benchmarks.md says what each number means and holds results.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// common is what every benchmark takes.
type common struct {
	kubeconfig string
	json       bool
}

func command() *cobra.Command {
	c := &common{}
	root := &cobra.Command{Use: "bench", Short: "Measure Bulwark", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringVar(&c.kubeconfig, "kubeconfig", ".cluster/kubeconfig", "kubeconfig of the cluster")
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON, not a table")
	root.AddCommand(installCommand(c), policyCommand(c), dataplaneCommand(c), memoryCommand(c), xdsCommand(c), identityCommand(c))
	root.AddCommand(traffic.Command(), agents.Command()) // the programs that benchmarks start
	return root
}

func (c *common) write(cmd *cobra.Command, result report.Tabular) error {
	format := "table"
	if c.json {
		format = "json"
	}
	return report.Write(cmd.OutOrStdout(), format, result)
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
