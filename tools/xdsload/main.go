// Command xdsload measures Pilot at scale: it makes a large cluster's objects in a real API server, runs Pilot and the nodes' agents beside it,
// and speaks to these as all the cluster's proxies.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "xdsload:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o, format := load.Defaults(), "table"
	o.Progress = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	cmd := &cobra.Command{
		Use: "xdsload", Short: "Pilot with many proxies", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := load.RunAny(cmd.Context(), o)
			if err != nil {
				return err
			}
			return report.Write(cmd.OutOrStdout(), format, result)
		},
	}
	o.AddFlags(cmd.Flags())
	cmd.Flags().StringVarP(&format, "output", "o", format, "table or json")
	cmd.AddCommand(agents.Command())
	return cmd
}
