package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
)

// caStatus is the CA as Citadel's operator API shows it.
type caStatus struct {
	Signer      caCert     `json:"signer"`
	Origin      string     `json:"origin"`
	Constrained bool       `json:"constrained"`
	Roots       []caCert   `json:"roots"`
	Sequence    uint64     `json:"sequence"`
	TokenKeys   []string   `json:"tokenKeys"`
	Leading     bool       `json:"leading"`
	Rotation    caRotation `json:"rotation"`
	Waits       []caWait   `json:"waits,omitempty"`
	Holders     int        `json:"holders"`
	Trouble     string     `json:"trouble,omitempty"`
}

type caCert struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	KeyID     string    `json:"keyID"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

type caRotation struct {
	Phase    string    `json:"phase,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Since    time.Time `json:"since,omitzero"`
	Paused   bool      `json:"paused,omitempty"`
	Aborting bool      `json:"aborting,omitempty"`
	Forced   bool      `json:"forced,omitempty"`
	Last     string    `json:"last,omitempty"`
	LastAt   time.Time `json:"lastAt,omitzero"`
}

type caWait struct {
	For  string `json:"for"`
	What string `json:"what"`
}

func (a *app) ca() *cobra.Command {
	cmd := group("ca", "Look at the mesh's CA, and rotate its root")
	cmd.AddCommand(a.caStatus(), a.caRotate())
	return cmd
}

func (a *app) caStatus() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show who signs, which roots are trusted, and how a rotation goes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			now, err := leaderStatus(cmd.Context(), client)
			if err != nil {
				return err
			}
			return a.out.Value(output, now, func(out *printer.Printer) { showCA(out, now) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) caRotate() *cobra.Command {
	var status, pause, resume, abort, force, detach bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Move the mesh to a new root without a failed connection, and watch it go", Args: cobra.NoArgs,
		Long: "Rotating the root has three phases. publishing: the next root joins the bundle, until every proxy, agent and component\n" +
			"has said that it holds it. signing: the next root signs, until every certificate of the old one has been renewed.\n" +
			"retiring: the old root leaves the bundle. Each step is stored; interrupting this command stops nothing.",
		Example: "  meshctl ca rotate\n  meshctl ca rotate --status\n  meshctl ca rotate --abort",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			action := "start"
			for name, chosen := range map[string]bool{"": status, "pause": pause, "resume": resume, "abort": abort, "force": force} {
				if chosen {
					action = name
				}
			}
			if action != "" {
				if err := sayToCA(cmd.Context(), client, action); err != nil {
					return err
				}
			}
			follow := (action == "start" || action == "abort" || action == "resume" || action == "force") && !detach
			return watchRotation(cmd.Context(), client, a.out, follow)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&status, "status", false, "show how far it is, and what it waits for")
	f.BoolVar(&pause, "pause", false, "stay in this phase")
	f.BoolVar(&resume, "resume", false, "go on after --pause")
	f.BoolVar(&abort, "abort", false, "go back to the old root; not possible once it is withdrawn")
	f.BoolVar(&force, "force", false, "go on to the next phase without waiting: whoever is behind will be cut off until it catches up")
	f.BoolVar(&detach, "detach", false, "do not watch")
	cmd.MarkFlagsMutuallyExclusive("status", "pause", "resume", "abort", "force")
	return cmd
}

// sayToCA tells Citadel to start, pause, resume, abort or force a rotation.
func sayToCA(ctx context.Context, client *kube.Client, action string) error {
	conn, _, err := toLeader(ctx, client)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.PostJSON(ctx, "/v1/ca/rotation", map[string]string{"action": action, "by": whoAmI(ctx, client)}, nil); err != nil {
		return fmt.Errorf("root rotation: %w", err)
	}
	return nil
}

// whoAmI is the user of the kubeconfig, for the record.
func whoAmI(ctx context.Context, client *kube.Client) string {
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "unknown"
	}
	return review.Status.UserInfo.Username
}

// watchRotation shows the rotation, and goes on until it has ended if follow is set. Citadel may be replaced meanwhile.
func watchRotation(ctx context.Context, client *kube.Client, out *printer.Printer, follow bool) error {
	var shown []string
	var away time.Time
	for {
		now, err := leaderStatus(ctx, client)
		if err != nil && (!follow || ctx.Err() != nil || (!away.IsZero() && time.Since(away) > time.Minute)) {
			return err
		}
		if err != nil {
			away = cmp.Or(away, time.Now())
		} else {
			away = time.Time{}
			if lines := rotationLines(now); !slices.Equal(lines, shown) {
				for _, line := range lines {
					out.Line("%s", line)
				}
				shown = lines
			}
			if out.Err() != nil || !follow || now.Rotation.Phase == "" || now.Rotation.Paused {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// rotationLines says how far a rotation is and, on lines of their own, whom it waits for.
func rotationLines(s caStatus) []string {
	r := s.Rotation
	if r.Phase == "" {
		if r.Last == "" {
			return []string{"no root rotation is under way, and there has been none"}
		}
		return []string{fmt.Sprintf("no root rotation is under way; the last one %s (%s)", r.Last, r.LastAt.Local().Format(time.DateTime))}
	}
	line := fmt.Sprintf("%s, bundle %d", r.Phase, s.Sequence)
	if r.Aborting {
		line += ", aborting"
	}
	if r.Paused {
		return []string{line + ": paused (--resume goes on)"}
	}
	if len(s.Waits) == 0 {
		return []string{line + ": nobody is behind"}
	}
	out := []string{line + fmt.Sprintf(": waits for %d", len(s.Waits))}
	for _, w := range s.Waits[:min(5, len(s.Waits))] {
		out = append(out, "  "+w.For+" "+w.What)
	}
	if more := len(s.Waits) - 5; more > 0 {
		out = append(out, fmt.Sprintf("  and %d more", more))
	}
	return out
}

func showCA(out *printer.Printer, s caStatus) {
	t := out.Table()
	defer t.Flush()
	t.Row("Signer:", s.Signer.Subject+" ("+s.Origin+")")
	t.Row("  key:", s.Signer.KeyID)
	t.Row("  valid:", fmt.Sprintf("until %s (%s)", s.Signer.NotAfter.Format(time.RFC3339), left(s.Signer.NotAfter)))
	constrained := "to its trust domain, by name constraints"
	if !s.Constrained {
		constrained = "by nothing: a stolen key could sign for any trust domain that trusts the root"
	}
	t.Row("  limited:", constrained)
	t.Row("Bundle:", fmt.Sprintf("%d, held by %d components", s.Sequence, s.Holders))
	for _, root := range s.Roots {
		t.Row("  root:", fmt.Sprintf("%s, until %s (%s)", root.Subject, root.NotAfter.Format(time.RFC3339), left(root.NotAfter)))
	}
	for i, key := range s.TokenKeys {
		role := "published"
		if i == 0 {
			role = "signs JWT-SVIDs"
		}
		t.Row("  key:", key+", "+role)
	}
	for i, line := range rotationLines(s) {
		t.Row([]string{"Rotation:", ""}[min(1, i)], line)
	}
	if s.Trouble != "" {
		t.Row("Trouble:", s.Trouble)
	}
}

// left says how long it is until a time.
func left(t time.Time) string {
	d := time.Until(t)
	switch {
	case d <= 0:
		return "expired"
	case d > 48*time.Hour:
		return fmt.Sprintf("%d days left", int(d.Hours()/24))
	default:
		return d.Round(time.Second).String() + " left"
	}
}
