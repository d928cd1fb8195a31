package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// trail says which records of the audit trail are asked for.
type trail struct {
	since time.Duration
	file  string
}

func (t *trail) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&t.since, "since", 24*time.Hour, "records of this long ago or less, as far as Mixer has them at hand; 0 for all")
	cmd.Flags().StringVar(&t.file, "records", "", "file of records, as meshctl audit tail -o json writes it, in place of Mixer's")
}

// records gets them, of one namespace if it is given, and says since when there are some.
func (t *trail) records(ctx context.Context, client *kube.Client, namespace string) ([]*telemetryv1.Record, error) {
	switch {
	case t.since < 0:
		return nil, fmt.Errorf("--since %s is in the future", t.since)
	case t.file != "":
		file, err := os.Open(t.file)
		if err != nil {
			return nil, fmt.Errorf("reading records: %w", err)
		}
		defer file.Close()
		records, err := readRecords(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.file, err)
		}
		return slices.DeleteFunc(records, func(r *telemetryv1.Record) bool {
			return t.since > 0 && r.GetEvent().GetTime().AsTime().Before(time.Now().Add(-t.since))
		}), nil
	case client == nil:
		return nil, errors.New("--offline asks no Mixer: name a file of records with --records")
	}
	q := url.Values{"last": {"0"}, "kind": {"request"}}
	if t.since > 0 {
		q.Set("since", time.Now().Add(-t.since).Format(time.RFC3339Nano))
	}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	return recordsOf(ctx, client, q)
}

// sinceWhen notes how far back the records go.
func sinceWhen(out *printer.Printer, records []*telemetryv1.Record) {
	if len(records) > 0 {
		out.Line("Note: the oldest record is of %s.", records[0].GetEvent().GetTime().AsTime().Local().Format(time.RFC3339))
	}
}

func (a *app) authzReplay() *cobra.Command {
	var w world
	var t trail
	var namespace, output string
	var all bool
	cmd := &cobra.Command{
		Use: "replay -f FOLDER", Short: "Show which recorded decisions other policies would have made otherwise", Args: cobra.NoArgs,
		Long: "Decides what the audit trail has again, by the policies of the files laid over the cluster's. Paths are shown as templates.\n" +
			"What was allowed is in the trail only where an AUDIT policy selects it or one on trial would deny it, and headers are not: what depends on them is listed apart.\n" +
			"It exits with 0 if nothing would change, with 1 if something would, with 2 if it could not be told.",
		Example: "  meshctl authz replay -f proposed/ --since 24h -A\n  meshctl authz replay -f proposed/ -n finance -o json\n  meshctl authz replay -f proposed/ --records trail.jsonl --since 0 -A",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(w.files) == 0 {
				return errors.New("name the proposed files with -f, or - for the input")
			}
			client, m, err := a.mesh(cmd.Context(), w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			of := namespace
			if all {
				of = ""
			}
			records, err := t.records(cmd.Context(), client, of)
			if err != nil {
				return err
			}
			r := m.Replay(records)
			err = a.out.Value(output, r, func(out *printer.Printer) {
				sinceWhen(out, records)
				showReplay(out, r)
			})
			switch {
			case err != nil:
				return err
			case len(r.Changed) > 0:
				return no
			case len(r.Unknown) > 0 || r.Decisions == 0:
				return status{code: 2}
			}
			return nil
		},
	}
	w.flags(cmd, "files or folders of the proposed policies; - is the input")
	t.flags(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "only decisions of proxies in this namespace; and that of objects of files that name none")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "decisions of all namespaces")
	outputFlag(cmd, &output)
	return cmd
}

func showReplay(out *printer.Printer, r *explain.Replayed) {
	for _, n := range r.Notes {
		out.Line("Note: %s.", n)
	}
	for _, why := range slices.Sorted(maps.Keys(r.Skipped)) {
		out.Line("Left out: %d records: %s.", r.Skipped[why], why)
	}
	if rows := slices.Concat(r.Changed, r.Unknown); len(rows) > 0 {
		t := out.Table("COUNT", "RECORDED", "THEN", "CLIENT", "WORKLOAD", "PORT", "REQUEST", "BY", "EVENT")
		for _, c := range rows {
			request := c.Method + " " + c.Path
			if c.Method == "" {
				request = "TCP"
			}
			t.Row(brief(fmt.Sprint(c.Count), c.Before, c.After, c.Client, c.Workload, fmt.Sprint(c.Port), request, c.Why, fmt.Sprint(c.Event))...)
		}
		t.Flush()
	}
	changed, unknown := 0, 0
	for _, c := range r.Changed {
		changed += c.Count
	}
	for _, c := range r.Unknown {
		unknown += c.Count
	}
	out.Line("Of %d decisions, %d would change, and %d depend on what is not recorded.", r.Decisions, changed, unknown)
}

func (a *app) authzSuggest() *cobra.Command {
	var w world
	var t trail
	var namespace, workload, output string
	var denied bool
	cmd := &cobra.Command{
		Use: "suggest --workload WORKLOAD", Short: "Print a least-privilege policy for a workload, from what was seen", Args: cobra.NoArgs,
		Long: "Makes an ALLOW policy of the identities, ports, methods and paths that the audit trail has as allowed, and decides them all again by it before it prints it.\n" +
			"An AUDIT policy has to select the workload for the time that is looked at, or what was allowed is not in the trail.\n" +
			"It exits with 0 if the policy admits all of them, with 1 if not, with 2 if there is none.",
		Example: "  meshctl authz suggest -n finance --workload payroll --since 24h\n  meshctl authz suggest -n finance --workload deploy/payroll -o yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if workload == "" {
				return errors.New("name the workload: --workload deploy/NAME")
			}
			client, m, err := a.mesh(cmd.Context(), w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			records, err := t.records(cmd.Context(), client, namespace)
			if err != nil {
				return err
			}
			s, err := m.Suggest(namespace, workload, records, denied)
			if err != nil {
				return err
			}
			if err := a.out.Value(output, s, func(out *printer.Printer) { showSuggestion(out, s) }); err != nil {
				return err
			}
			switch {
			case s.Policy == nil:
				return status{code: 2}
			case s.Admitted < s.From:
				return no
			}
			return nil
		},
	}
	w.flags(cmd, "files or folders of policies to be laid over the cluster's; - is the input")
	t.flags(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workload")
	cmd.Flags().StringVar(&workload, "workload", "", "deploy/NAME, svc/NAME, pod/NAME, or NAME of any of these")
	cmd.Flags().BoolVar(&denied, "denied", false, "also admit what was denied")
	outputFlag(cmd, &output)
	complete(cmd, "workload", a.completeWorkload(&w, &namespace))
	return cmd
}

func showSuggestion(out *printer.Printer, s *explain.Suggestion) {
	out.Line("# For %s, from %d requests, of which it admits %d.", s.Workload, s.From, s.Admitted)
	for _, n := range s.Notes {
		out.Line("# Note: %s.", n)
	}
	for _, l := range s.Left {
		out.Line("# Left out: %s.", l)
	}
	if s.Policy == nil {
		return
	}
	for _, r := range s.Rules {
		out.Line("# Rule: %s.", r)
	}
	_ = out.YAML(s.Policy) // the printer keeps the error
}
