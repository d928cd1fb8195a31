package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

type tailOptions struct {
	namespace, identity, verdict, output string
	last                                 int
	since                                time.Duration
	follow                               bool
}

func (a *app) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read the audit trail"}
	var o tailOptions
	tail := &cobra.Command{
		Use: "tail", Short: "Show the latest decisions", Args: cobra.NoArgs,
		Example: "  meshctl audit tail -n finance\n  meshctl audit tail --verdict denied -f\n  meshctl audit tail --last 0 -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.tail(cmd.Context(), cmd.OutOrStdout(), o) },
	}
	f := tail.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only decisions of proxies in this namespace")
	f.StringVar(&o.identity, "identity", "", "only with this identity, or a part of one, as source or destination")
	f.StringVar(&o.verdict, "verdict", "", "only allowed, denied or refused")
	f.IntVar(&o.last, "last", 20, "the newest so many, 0 for all that Mixer has at hand")
	f.DurationVar(&o.since, "since", 0, "only decisions of this long ago or less, 0 for all")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new ones")
	f.StringVarP(&o.output, "output", "o", "table", "table or json (one object a line)")
	cmd.AddCommand(tail)
	return cmd
}

func (o tailOptions) query() string {
	q := url.Values{"last": {strconv.Itoa(o.last)}, "follow": {strconv.FormatBool(o.follow)}}
	for key, value := range map[string]string{"namespace": o.namespace, "identity": o.identity, "verdict": o.verdict} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if o.since > 0 {
		q.Set("since", time.Now().Add(-o.since).Format(time.RFC3339Nano))
	}
	return q.Encode()
}

func (a *app) tail(ctx context.Context, out io.Writer, o tailOptions) error {
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("--output %s: use table or json", o.output)
	}
	conn, err := a.toMixer(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	body, err := conn.Get(ctx, "/v1/audit?"+o.query())
	if err != nil {
		return fmt.Errorf("asking Mixer: %w", err)
	}
	defer body.Close()
	if o.output == "table" {
		fmt.Fprintf(out, rowFormat, "TIME", "VERDICT", "SOURCE", "DESTINATION", "REQUEST", "POLICY OR REASON")
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if o.output == "json" {
			fmt.Fprintln(out, lines.Text())
			continue
		}
		record := &telemetryv1.Record{}
		if err := protojson.Unmarshal(lines.Bytes(), record); err != nil {
			return fmt.Errorf("Mixer sent a record that cannot be read: %w", err)
		}
		printRow(out, record.GetEvent())
	}
	if ctx.Err() != nil {
		return nil // the user stopped following
	}
	return lines.Err()
}

// rowFormat has fixed columns, as rows are printed while more are to come.
const rowFormat = "%-12s  %-8s  %-28s  %-28s  %-40s  %s\n"

func printRow(out io.Writer, e *telemetryv1.Event) {
	if e.GetLost() > 0 {
		fmt.Fprintf(out, "%-12s  %d events of node %s were lost: its spool was full\n", e.GetTime().AsTime().Local().Format("15:04:05.000"), e.GetLost(), e.GetObserver().GetNode())
		return
	}
	var request []string
	for _, part := range []string{e.GetProtocol(), e.GetMethod(), e.GetPath()} {
		if part != "" {
			request = append(request, part)
		}
	}
	if e.GetResponseCode() > 0 {
		request = append(request, strconv.Itoa(int(e.GetResponseCode())))
	}
	fmt.Fprintf(out, rowFormat, e.GetTime().AsTime().Local().Format("15:04:05.000"),
		strings.ToLower(strings.TrimPrefix(e.GetVerdict().String(), "VERDICT_")),
		cmp.Or(identities.Short(e.GetSourceIdentity()), e.GetSourceAddress(), "unknown"),
		cmp.Or(identities.Short(e.GetDestinationIdentity()), e.GetDestinationService(), e.GetDestinationAddress(), asked(e), "unknown"),
		strconv.QuoteToGraphic(strings.Join(request, " ")), // a path is the client's text, and may hold anything
		cmp.Or(e.GetPolicy(), e.GetReason(), "no policy selects the workload"))
}

// asked is who decided, where that was not a proxy: Citadel.
func asked(e *telemetryv1.Event) string {
	if e.GetKind() == telemetryv1.Kind_KIND_REQUEST {
		return ""
	}
	return identities.Short(e.GetObserver().GetIdentity())
}
