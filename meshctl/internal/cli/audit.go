package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

type tailOptions struct {
	namespace, identity, verdict, trial, output string
	last                                        int
	since                                       time.Duration
	follow                                      bool
}

func (a *app) audit() *cobra.Command {
	cmd := group("audit", "Read the audit trail")
	var o tailOptions
	tail := &cobra.Command{
		Use: "tail", Short: "Show the latest decisions", Args: cobra.NoArgs,
		Example: "  meshctl audit tail -n finance\n  meshctl audit tail --verdict denied -f\n  meshctl audit tail --trial denied --since 24h\n  meshctl audit tail --last 0 -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.tail(cmd.Context(), o) },
	}
	f := tail.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only decisions of proxies in this namespace")
	f.StringVar(&o.identity, "identity", "", "only with this identity, or a part of one, as source or destination")
	f.StringVar(&o.verdict, "verdict", "", "only allowed, denied or refused")
	f.StringVar(&o.trial, "trial", "", "only what the policies on trial (istio.io/dry-run) would have decided otherwise: as denied, as allowed, or any")
	f.IntVar(&o.last, "last", 20, "the newest so many, 0 for all that Mixer has at hand")
	f.DurationVar(&o.since, "since", 0, "only decisions of this long ago or less, 0 for all")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new ones")
	f.StringVarP(&o.output, "output", "o", "table", "table or json (one object a line)")
	cmd.AddCommand(tail)
	return cmd
}

func (o tailOptions) query() string {
	q := url.Values{"last": {strconv.Itoa(o.last)}, "follow": {strconv.FormatBool(o.follow)}}
	for key, value := range map[string]string{"namespace": o.namespace, "identity": o.identity, "verdict": o.verdict, "trial": o.trial} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if o.since > 0 {
		q.Set("since", time.Now().Add(-o.since).Format(time.RFC3339Nano))
	}
	return q.Encode()
}

// check returns what no trail could be asked for.
func (o tailOptions) check() error {
	switch {
	case o.output != "table" && o.output != "json":
		return fmt.Errorf("--output %s: use table or json", o.output)
	case o.last < 0:
		return fmt.Errorf("--last %d: use 0 for all that Mixer has at hand, or how many", o.last)
	case o.since < 0:
		return fmt.Errorf("--since %s is in the future", o.since)
	case !slices.Contains([]string{"", "allowed", "denied", "refused"}, o.verdict):
		return fmt.Errorf("--verdict %s: use allowed, denied or refused", o.verdict)
	case !slices.Contains([]string{"", "allowed", "denied", "any"}, o.trial):
		return fmt.Errorf("--trial %s: use allowed, denied or any", o.trial)
	}
	return nil
}

func (a *app) tail(ctx context.Context, o tailOptions) error {
	if err := o.check(); err != nil {
		return err
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
		a.out.Columns(widths, "TIME", "VERDICT", "SOURCE", "DESTINATION", "REQUEST", "POLICY OR REASON")
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for a.out.Err() == nil && lines.Scan() {
		if o.output == "json" {
			a.out.JSON(lines.Bytes())
			continue
		}
		record := &telemetryv1.Record{}
		// A Mixer that is newer may say more than this meshctl knows.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(lines.Bytes(), record); err != nil {
			return fmt.Errorf("Mixer sent a record that cannot be read: %w", err)
		}
		a.out.Columns(widths, row(record.GetEvent())...)
	}
	if ctx.Err() != nil {
		return nil // the user stopped following
	}
	return lines.Err()
}

// widths are fixed, as rows are printed while more are to come.
var widths = []int{12, 8, 28, 28, 40}

// row is an event as a line of the table.
func row(e *telemetryv1.Event) []string {
	at := e.GetTime().AsTime().Local().Format("15:04:05.000")
	if e.GetKind() == telemetryv1.Kind_KIND_TRAIL || e.GetLost() > 0 {
		what := "REFUSED"
		if e.GetLost() > 0 {
			what = fmt.Sprintf("%d LOST", e.GetLost())
		}
		return []string{at, what, cmp.Or(identities.Short(e.GetSourceIdentity()), "-"), cmp.Or(nodeOf(e), "-"), "audit trail",
			cmp.Or(e.GetReason(), "the spool was full")}
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
	return []string{
		at, strings.ToLower(strings.TrimPrefix(e.GetVerdict().String(), "VERDICT_")),
		cmp.Or(identities.Short(e.GetSourceIdentity()), claims(e.GetClaimedSource()), peer(e), "unknown"),
		cmp.Or(identities.Short(e.GetDestinationIdentity()), claims(e.GetClaimedDestination()),
			e.GetDestinationService(), e.GetDestinationAddress(), asked(e), "unknown"),
		strings.Join(request, " "),
		cmp.Or(e.GetPolicy(), e.GetReason(), made(e), "-") + tried(e.GetTrial()),
	}
}

// peer is who has no identity, by address: of the client, and of whoever connects for it.
func peer(e *telemetryv1.Event) string {
	if remote := e.GetRemoteAddress(); remote != "" {
		return remote + " by " + e.GetSourceAddress()
	}
	return e.GetSourceAddress()
}

// tried says what the policies on trial would have decided, where that is something else.
func tried(t *telemetryv1.Trial) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("; on trial %s: %s", strings.ToLower(strings.TrimPrefix(t.GetVerdict().String(), "VERDICT_")), cmp.Or(t.GetPolicy(), t.GetReason()))
}

// claims shows what a certificate says that has proven nothing, in whole: it may be of the form of another mesh, or of none.
func claims(name string) string {
	if name == "" {
		return ""
	}
	return "claims " + name
}

func nodeOf(e *telemetryv1.Event) string {
	if node := e.GetObserver().GetNode(); node != "" {
		return "node " + node
	}
	return identities.Short(e.GetObserver().GetIdentity())
}

// made says what Citadel has issued.
func made(e *telemetryv1.Event) string {
	if e.GetCertificateSerial() == "" {
		return ""
	}
	return "certificate " + e.GetCertificateSerial()
}

// asked is who decided, where that was not a proxy: Citadel.
func asked(e *telemetryv1.Event) string {
	if e.GetKind() == telemetryv1.Kind_KIND_REQUEST {
		return ""
	}
	return identities.Short(e.GetObserver().GetIdentity())
}
