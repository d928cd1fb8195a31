package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/objects"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
)

func (a *app) authzDiff() *cobra.Command {
	var w world
	var against []string
	var namespace, output string
	cmd := &cobra.Command{
		Use: "diff -f FOLDER", Short: "Show whose requests would be allowed or denied by other policies, exactly", Args: cobra.NoArgs,
		Long: "Compares what holds in the cluster, or in the files of --against, with what would hold if the files of -f were applied: for all identities, ports, methods, paths and\n" +
			"whatever else policies look at, not for samples. Each line has an example. Workloads and Services are the cluster's and those of all files together.\n" +
			"It exits with 0 if nothing changes, with 1 if something does, with 2 if it could not be told.",
		Example: "  meshctl authz diff -f proposed/\n  meshctl authz diff -f proposed/ --only\n  meshctl authz diff --against main/ -f branch/ -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(w.files) == 0 {
				return errors.New("name the proposed files with -f, or - for the input")
			}
			before, after, err := a.twoMeshes(cmd.Context(), w, against, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			d := explain.Diff(before, after)
			err = a.out.Value(output, d, func(out *printer.Printer) { showDifference(out, d) })
			switch {
			case err != nil:
				return err
			case len(d.Untold) > 0:
				return status{code: 2}
			case len(d.Changes) > 0:
				return no
			}
			return nil
		},
	}
	w.flags(cmd, "files or folders of the proposed policies; - is the input")
	cmd.Flags().StringSliceVar(&against, "against", nil, "files or folders of policies to compare with, in place of the cluster's; no cluster is asked")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of objects of files that name none")
	outputFlag(cmd, &output)
	return cmd
}

// twoMeshes are what holds now, in the cluster or the files of against, and what would hold with the files.
func (a *app) twoMeshes(ctx context.Context, w world, against []string, in io.Reader, namespace string) (before, after *explain.Mesh, err error) {
	w.offline = w.offline || len(against) > 0
	if err := w.mesh.check(w.offline, against); err != nil {
		return nil, nil, err
	}
	_, base, options, err := a.base(ctx, w, in)
	if err != nil {
		return nil, nil, err
	}
	files, err := objects.InFiles(w.files, in, namespace)
	if err != nil {
		return nil, nil, err
	}
	was, err := objects.InFiles(against, in, namespace)
	if err != nil {
		return nil, nil, err
	}
	if untold := w.mesh.untold(slices.Concat(files, was)); w.offline && untold != "" {
		a.notes.Line("%s", untold)
	}
	base = explain.Overlay(base, was)
	only := w.only || len(against) > 0
	now := time.Now()
	// What is no policy is the same for both, so that what differs is the policies' doing.
	if before, err = explain.New(explain.Overlay(explain.WithoutPolicies(files), base), options, now); err != nil {
		return nil, nil, fmt.Errorf("what holds now: %w", err)
	}
	after, err = explain.New(laidOver(base, files, only), options, now)
	return before, after, err
}

func showDifference(out *printer.Printer, d *explain.Difference) {
	for _, n := range d.Notes {
		out.Line("Note: %s.", n)
	}
	showUntold(out, d.Untold)
	if len(d.Changes) == 0 {
		if len(d.Untold) == 0 {
			out.Line("Nothing changes for any request to the %d workloads.", d.Compared)
		}
		return
	}
	t := out.Table("CHANGE", "WORKLOAD", "PORT", "CLIENT", "METHOD", "PATH", "AND ONLY IF", "EXAMPLE")
	for _, c := range d.Changes {
		change := "now denied"
		switch {
		case c.Asked != "" && c.After:
			change = "now asks " + c.Asked
		case c.Asked != "":
			change = "no longer asks " + c.Asked
		case c.After:
			change = "now allowed"
		}
		t.Row(append(append([]string{change}, accessRow(c.Access)...), brief(c.Client+": "+c.Example)...)...)
	}
	t.Flush()
	out.Line("%d changes, of %d workloads that were compared.", len(d.Changes), d.Compared)
}
