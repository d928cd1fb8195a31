package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
)

func (a *app) authzWhoCan() *cobra.Command {
	var w world
	var f askFlags
	var namespace, output string
	cmd := &cobra.Command{
		Use: "who-can WORKLOAD|svc/NAME", Short: "Show who can reach a workload, at which ports, by which methods and paths", Args: cobra.ExactArgs(1),
		Long: "What the policies leave open stands beside it: the addresses, headers and other things that a request must have, too.\n" +
			"It exits with 1 if nobody can, with 2 if that could not be told for some port.",
		Example: "  meshctl authz who-can -n finance deploy/payroll\n  meshctl authz who-can -n finance svc/payroll --port 80 -X GET --path /accounts/1\n" +
			"  meshctl authz who-can -n finance deploy/payroll --offline -f manifests/ -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			ask := f.Ask
			ask.Namespace, ask.To = namespace, args[0]
			_, m, err := a.mesh(cmd.Context(), w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			found, err := m.WhoCan(ask)
			if err != nil {
				return err
			}
			return a.accesses(output, found, "Nobody can.")
		},
	}
	w.flags(cmd, "files or folders of policies to be laid over the cluster's; - is the input")
	f.request(cmd)
	cmd.Flags().BoolVar(&f.TCP, "tcp", false, "connections that are not HTTP, alone")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workload")
	outputFlag(cmd, &output)
	cmd.ValidArgsFunction = a.completeWorkload(&w, &namespace)
	return cmd
}

func (a *app) authzWhatCan() *cobra.Command {
	var w world
	var f askFlags
	var namespace, output string
	var all bool
	cmd := &cobra.Command{
		Use: "what-can NAMESPACE/ACCOUNT", Short: "Show what an identity can reach, at which ports, by which methods and paths", Args: cobra.MaximumNArgs(1),
		Long: "It goes through the workloads of the namespace of -n, or of all with -A. What the policies leave open stands beside it.\n" +
			"It exits with 1 if nothing can be reached, with 2 if that could not be told for some port.",
		Example: "  meshctl authz what-can finance/account-auditor -A\n  meshctl authz what-can --plaintext -n finance\n  meshctl authz what-can finance/web -n finance -X DELETE -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.Plaintext == (len(args) == 1) {
				return errors.New("name an identity (NAMESPACE/ACCOUNT), or --plaintext for a client without one")
			}
			ask := f.Ask
			ask.Namespace, ask.From = namespace, strings.Join(args, "")
			_, m, err := a.mesh(cmd.Context(), w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			within := namespace
			if all {
				within = ""
			}
			found, err := m.WhatCan(ask, within)
			if err != nil {
				return err
			}
			return a.accesses(output, found, "Nothing can be reached.")
		},
	}
	w.flags(cmd, "files or folders of policies to be laid over the cluster's; - is the input")
	f.request(cmd)
	cmd.Flags().BoolVar(&f.TCP, "tcp", false, "connections that are not HTTP, alone")
	cmd.Flags().BoolVar(&f.Plaintext, "plaintext", false, "a client without identity")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workloads, and of an account that is named without one")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "workloads of all namespaces")
	outputFlag(cmd, &output)
	cmd.ValidArgsFunction = a.completeAccount(&w)
	return cmd
}

// accesses shows them, and fails where there are none or some could not be told.
func (a *app) accesses(output string, found *explain.Accesses, none string) error {
	err := a.out.Value(output, found, func(out *printer.Printer) {
		for _, n := range found.Notes {
			out.Line("Note: %s.", n)
		}
		if len(found.Access) == 0 {
			out.Line("%s", none)
		} else {
			t := out.Table("WORKLOAD", "PORT", "CLIENT", "METHOD", "PATH", "AND ONLY IF")
			for _, x := range found.Access {
				t.Row(accessRow(x)...)
			}
			t.Flush()
		}
		showUntold(out, found.Untold)
	})
	switch {
	case err != nil:
		return err
	case len(found.Untold) > 0:
		return status{code: 2}
	case len(found.Access) == 0:
		return no
	}
	return nil
}

func accessRow(x explain.Access) []string {
	conditions := x.Conditions
	if x.Note != "" {
		conditions = append(append([]string{}, conditions...), x.Note)
	}
	cells := []string{x.Workload, first(x.Ports), first(x.Clients), first(x.Methods), first(x.Paths), strings.Join(conditions, "; ")}
	for i := range cells[1:] {
		if cells[i+1] == "" {
			cells[i+1] = "-"
		}
	}
	return brief(cells...)
}

func showUntold(out *printer.Printer, untold []explain.Untold) {
	for _, u := range untold {
		out.Line("Not told: %s, port %s: %s.", u.Workload, u.Port, u.Why)
	}
}
