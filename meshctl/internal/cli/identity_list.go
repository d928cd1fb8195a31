package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
)

func (a *app) identityList() *cobra.Command {
	var output string
	var filter identities.Filter
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show every certificate of the mesh and who holds it", Args: cobra.NoArgs,
		Long:    "Asks all agents, the components and Citadel, and reads the workload Secrets. What could not be asked is said on the\nerror output, and the command fails, after what is known has been shown.",
		Example: "  meshctl identity list\n  meshctl identity list -n finance --held-by secret\n  meshctl identity list --identity finance/payroll -o json\n  meshctl identity list --issuer 3fb2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := filter.Validate(); err != nil {
				return err
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			access, err := operator.Open(cmd.Context(), client)
			if err != nil {
				return err
			}
			g, err := gather(cmd.Context(), client, access, filter)
			if err != nil {
				return err
			}
			if err := a.out.Value(output, g.entries, func(out *printer.Printer) { identities.WriteTable(out, g.entries, time.Now()) }); err != nil {
				return err
			}
			return incomplete(a.notes, g.troubles)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&filter.Namespace, "namespace", "n", "", "only what is held in this namespace")
	f.StringVar(&filter.Identity, "identity", "", "only this identity, or a part of one; namespace/account will do")
	f.StringVar(&filter.State, "state", "", "only pending, valid, due, late, expired, damaged or revoked")
	f.StringVar(&filter.HeldBy, "held-by", "", "only what is held by a pod, secret or component")
	f.StringVar(&filter.Issuer, "issuer", "", "only what was signed by this key: its ID, or the beginning of it")
	outputFlag(cmd, &output)
	return cmd
}

// incomplete says what could not be asked.
func incomplete(out *printer.Printer, troubles []error) error {
	if len(troubles) == 0 {
		return nil
	}
	for _, err := range troubles {
		out.Line("%s", err)
	}
	return fmt.Errorf("this is not all: %d could not be asked", len(troubles))
}
