package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/dataplane"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
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
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "rounds, in each of which all configurations take their turn")
	f.DurationVar(&o.Duration, "duration", o.Duration, "of one configuration in one round")
	f.StringSliceVar(&o.Traffic, "traffic", o.Traffic, fmt.Sprintf("kinds of traffic: %v; ", traffic.Kinds)+"http1/64 is over 64 connections,\nhttp1/16@half at half the rate that Bulwark's configuration can do")
	f.StringSliceVar(&o.Vary, "vary", o.Vary, "what to take from Bulwark's configuration, one thing, or several with plus signs between, at a time:\n"+dataplane.Variations())
	f.StringSliceVar(&o.Add, "add", o.Add, "what policies to add to Bulwark's configuration, one at a time:\n"+dataplane.Additions())
	f.IntSliceVar(&o.Rules, "rules", o.Rules, "numbers of rules of policies to measure besides a policy with one")
	f.BoolVar(&o.Profile, "profile", false, "sample meanwhile where the Envoys spend their time (needs perf)")
	return cmd
}
