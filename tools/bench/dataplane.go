package main

import (
	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/dataplane"
)

func dataplaneCommand(c *common) *cobra.Command {
	o := dataplane.Defaults()
	o.Progress = progress
	cmd := &cobra.Command{
		Use: "dataplane", Short: "What a request costs two Envoys with Bulwark's configuration, and with a minimal one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Kubeconfig = c.kubeconfig
			result, err := dataplane.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			return c.write(cmd, result)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Pilot, "pilot", o.Pilot, "Pilot's binary")
	f.StringVar(&o.Agent, "agent", o.Agent, "the node agent's binary, for redirection")
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "rounds")
	f.DurationVar(&o.Duration, "duration", o.Duration, "of one configuration in one round")
	f.IntVar(&o.Connections, "connections", o.Connections, "connections of the load")
	return cmd
}
