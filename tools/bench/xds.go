package main

import (
	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/load"
)

func xdsCommand(c *common) *cobra.Command {
	o := load.Defaults()
	o.Progress = progress
	cmd := &cobra.Command{
		Use: "xds", Short: "Pilot with many proxies (what tools/xdsload does)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := load.RunAny(cmd.Context(), o)
			if err != nil {
				return err
			}
			return c.write(cmd, result)
		},
	}
	o.AddFlags(cmd.Flags()) // with a kubeconfig of its own, which takes the place of the common one
	return cmd
}
