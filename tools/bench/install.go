package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

const installWithin = 5 * time.Minute

type installResult struct {
	Install   report.Durations `json:"installNs"`
	Uninstall report.Durations `json:"uninstallNs"`
}

func installCommand(c *common) *cobra.Command {
	runs, meshctl := 3, "bin/meshctl"
	var settings []string
	cmd := &cobra.Command{
		Use: "install", Short: "Time of meshctl install until everything is ready, images present", Args: cobra.NoArgs,
		Long: "Uninstalls Bulwark from the cluster and installs it again, several times. It ends installed, with a new CA.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			install := []string{"install"}
			for _, s := range settings {
				install = append(install, "--set="+s)
			}
			r := &installResult{}
			for range runs {
				for _, step := range []struct {
					name string
					args []string
					into *report.Durations
				}{{"uninstall", []string{"uninstall", "--yes"}, &r.Uninstall}, {"install", install, &r.Install}} {
					progress("meshctl %s", step.name)
					d, err := timed(cmd.Context(), meshctl, append(step.args, "--kubeconfig="+c.kubeconfig)...)
					if err != nil {
						return err
					}
					*step.into = append(*step.into, d)
				}
			}
			return c.write(cmd, r)
		},
	}
	cmd.Flags().IntVar(&runs, "runs", runs, "how often")
	cmd.Flags().StringArrayVar(&settings, "set", nil, "settings of the installation, as for meshctl")
	cmd.Flags().StringVar(&meshctl, "meshctl", meshctl, "meshctl's binary")
	return cmd
}

func timed(ctx context.Context, program string, args ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, installWithin)
	defer cancel()
	began := time.Now()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s %v: %w\n%s", program, args, err, out)
	}
	return time.Since(began), nil
}

func (r *installResult) Table() report.Table {
	t := report.Table{Columns: []string{"run", "install", "uninstall before it"}}
	for i := range r.Install {
		t.Row(fmt.Sprint(i+1), report.Seconds(r.Install[i]), report.Seconds(r.Uninstall[i]))
	}
	return t
}
