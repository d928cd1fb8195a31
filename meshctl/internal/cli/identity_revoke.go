package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// revokeOptions are the flags of identity revoke.
type revokeOptions struct {
	namespace, serial, reason string
	lasts                     time.Duration
	force                     bool
}

func (a *app) identityRevoke() *cobra.Command {
	var o revokeOptions
	cmd := &cobra.Command{
		Use: "revoke [IDENTITY|POD] [--serial HEX]", Short: "Deny an identity, or one certificate of it, in the whole mesh", Args: cobra.MaximumNArgs(1),
		Long: "IDENTITY is a SPIFFE ID or NAMESPACE/ACCOUNT: nobody is served as a client by it, connects to it as a server, or gets\n" +
			"a certificate for it. A pod (POD, pod/NAME, deploy/NAME) or --serial stands for one certificate, and its pod gets no other.",
		Example: "  meshctl identity revoke finance/payroll --reason \"account misused\"\n  meshctl identity revoke -n finance payroll-6d5f --for 48h\n  meshctl identity revoke --serial 3fb2…",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && o.serial == "" {
				return errors.New("what is to be revoked? name an identity, a pod, or --serial")
			}
			if o.lasts < 0 {
				return fmt.Errorf("--for %s is in the past", o.lasts)
			}
			return a.revoke(cmd.Context(), strings.Join(args, ""), o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "default", "namespace of the pod")
	f.StringVar(&o.serial, "serial", "", "only the certificate of this number, in hexadecimal")
	f.DurationVar(&o.lasts, "for", 0, "how long (default: a day; for one certificate, as long as it could be used if that is longer)")
	f.StringVar(&o.reason, "reason", "", "why, for the audit trail and whoever asks")
	f.BoolVar(&o.force, "force", false, "also if it is the control plane's")
	return cmd
}

func (a *app) revoke(ctx context.Context, what string, o revokeOptions) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	access, err := operator.Open(ctx, client)
	if err != nil {
		return err
	}
	target, holders, err := resolve(ctx, client, access, a.notes, what, o)
	if err != nil {
		return err
	}
	made, err := revokeTarget(ctx, client, target, o)
	if err != nil {
		return err
	}
	subject := identities.Short(made.Identity)
	if made.Serial != "" {
		subject = "certificate " + made.Serial + " of " + subject
	}
	a.out.Line("%s is revoked until %s, as %s", subject, made.Expires.Format(time.RFC3339), made.Name)
	a.out.Line("to undo it: meshctl identity restore %s", made.Name)
	for _, line := range target.Consequences(holders, made.Expires) {
		a.out.Line("- %s", line)
	}
	if target.PodUID() == "" || !isPod(what) {
		return nil
	}
	// The pod may have renewed its certificate between the look at it and the revocation. From then on it gets no other.
	now, _, err := resolve(ctx, client, access, printer.New(io.Discard), what, o)
	if err != nil || now.Serial == target.Serial || now.PodUID() != target.PodUID() {
		return err
	}
	if made, err = revokeTarget(ctx, client, now, o); err != nil {
		return fmt.Errorf("the pod has just had a new certificate: %w", err)
	}
	a.out.Line("the pod has just had a new certificate: %s is revoked, too, as %s", made.Serial, made.Name)
	return nil
}

func revokeTarget(ctx context.Context, client *kube.Client, target identities.Target, o revokeOptions) (made revocation.Revocation, err error) {
	now := time.Now()
	if o.lasts == 0 {
		o.lasts = target.DefaultFor(now)
	}
	call := struct {
		revocation.Revocation
		Force bool `json:"force,omitempty"`
	}{revocation.Revocation{
		Identity: target.Identity, Serial: target.Serial, PodUID: target.PodUID(), Reason: o.reason, By: whoAmI(ctx, client), Expires: now.Add(o.lasts).UTC().Truncate(time.Second),
	}, o.force}
	conn, err := toCitadel(ctx, client, nil)
	if err != nil {
		return made, err
	}
	defer conn.Close()
	if err = conn.PostJSON(ctx, "/v1/revocations", call, &made); err != nil {
		return made, fmt.Errorf("revoking: %w", err)
	}
	return made, nil
}

// isPod tells a pod, or what stands for one, from an identity.
func isPod(what string) bool {
	kind, _, slash := strings.Cut(what, "/")
	return what != "" && (!slash || slices.Contains([]string{"pod", "pods", "deploy", "deployment", "secret"}, kind))
}

// resolve finds out what is meant, and who holds it.
func resolve(
	ctx context.Context, client *kube.Client, access *operator.Access, notes *printer.Printer, what string, o revokeOptions,
) (identities.Target, []identities.Entry, error) {
	if isPod(what) {
		if o.serial != "" {
			return identities.Target{}, nil, errors.New("a pod stands for the certificate that it has: name its identity with --serial, or the pod alone")
		}
		s, err := certificateOf(ctx, client, o.namespace, what)
		if err != nil {
			return identities.Target{}, nil, err
		}
		if s.Serial == "" {
			return identities.Target{}, nil, fmt.Errorf("%s has no certificate that could be revoked", s.HeldBy)
		}
		if s.Note != "" {
			notes.Line("note: %s", s.Note)
		}
		return identities.Of(s.Entry), nil, nil
	}
	identity, serial := "", ""
	var err error
	if what != "" {
		if identity, err = identities.ParseIdentity(what, access.TrustDomain()); err != nil {
			return identities.Target{}, nil, err
		}
	}
	if o.serial != "" {
		if serial, err = identities.ParseSerial(o.serial); err != nil {
			return identities.Target{}, nil, fmt.Errorf("--serial: %w", err)
		}
	}
	g, err := gather(ctx, client, access, identities.Filter{})
	if err != nil {
		return identities.Target{}, nil, err
	}
	for _, trouble := range g.troubles {
		notes.Line("note: %s", trouble)
	}
	if serial == "" {
		holders := slices.DeleteFunc(g.entries, func(e identities.Entry) bool { return e.Identity != identity })
		return identities.Target{Identity: identity}, holders, nil
	}
	target, err := identities.BySerial(g.entries, serial, identity)
	return target, nil, err
}

func (a *app) identityRevocations() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "revocations", Short: "Show what is revoked", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := revocations(cmd.Context(), client)
			if err != nil {
				return err
			}
			return a.out.Value(output, list, func(out *printer.Printer) { identities.WriteRevocations(out, list, time.Now()) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) identityRestore() *cobra.Command {
	return &cobra.Command{
		Use: "restore NAME", Short: "Undo a revocation", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			by := url.Values{"by": {whoAmI(cmd.Context(), client)}}
			conn, err := toCitadel(cmd.Context(), client, nil)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.Delete(cmd.Context(), "/v1/revocations/"+url.PathEscape(args[0])+"?"+by.Encode()); err != nil {
				return fmt.Errorf("%w (meshctl identity revocations lists them)", err)
			}
			a.out.Line("%s is undone", args[0])
			return nil
		},
	}
}
