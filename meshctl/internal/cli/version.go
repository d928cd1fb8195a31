package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/pkg/version"
)

func (a *app) version() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version of meshctl and of the control plane", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.out.Line("meshctl: %s", version.String())
			if clientOnly {
				return nil
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			for _, component := range components {
				pods, err := operator.Pods(cmd.Context(), client, component.name)
				switch {
				case errors.Is(err, kube.ErrNotRunning) || errors.Is(err, kube.ErrNotInstalled):
					a.out.Line("%s: %s", component.name, explained(err))
					continue
				case err != nil:
					return err
				}
				a.out.Line("%s: %s", component.name, pods[0].Spec.Containers[0].Image)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only meshctl's own version; needs no cluster")
	return cmd
}
