package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// shown is one certificate in whole: an entry and its chain.
type shown struct {
	identities.Entry
	Note  string            `json:"note,omitempty"`
	Chain []identities.Link `json:"chain"`
}

func (a *app) identityShow() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "show POD|deploy/NAME|secret/NAME", Short: "Show all about one certificate: chain, delivery, the trust bundle that is held", Args: cobra.ExactArgs(1),
		Example: "  meshctl identity show -n finance deploy/payroll\n  meshctl identity show -n finance secret/bulwark.payroll",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := show(cmd.Context(), client, namespace, args[0])
			if err != nil {
				return err
			}
			return a.out.Value(output, s, func(out *printer.Printer) { writeShown(out, s, time.Now()) })
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod or Secret")
	outputFlag(cmd, &output)
	return cmd
}

func show(ctx context.Context, client *kube.Client, namespace, name string) (*shown, error) {
	s, err := certificateOf(ctx, client, namespace, name)
	if err != nil {
		return nil, err
	}
	list, err := revocations(ctx, client)
	if err != nil {
		s.Note = strings.TrimSpace(s.Note + " whether it is revoked is not known: " + err.Error())
		return s, nil
	}
	one := []identities.Entry{s.Entry}
	identities.Mark(one, list, time.Now())
	s.Entry = one[0]
	return s, nil
}

// certificateOf returns the certificate of a pod or, if the name is secret/NAME, of a Secret.
func certificateOf(ctx context.Context, client *kube.Client, namespace, name string) (*shown, error) {
	if secret, ok := strings.CutPrefix(name, "secret/"); ok {
		return ofSecret(ctx, client, namespace, secret)
	}
	d, err := podIdentity(ctx, client, namespace, name)
	if err != nil {
		return nil, err
	}
	s := &shown{Entry: identities.OfWorkload(d.Workload, d.pod.Spec.NodeName)}
	if d.pod.Annotations[identityAnnotation] == "secret" {
		secret := mesh.SecretName(d.ServiceAccount)
		s.Note = fmt.Sprintf("the pod's proxy shows the certificate of Secret %s instead (identity show -n %s secret/%s)", secret, namespace, secret)
	}
	s.Chain, err = identities.Links([]byte(strings.Join(d.Chain, "")))
	if len(d.Chain) == 0 {
		s.Chain, err = []identities.Link{}, nil
	}
	return s, err
}

// identityAnnotation is where injection notes how a pod's proxy gets its certificate.
const identityAnnotation = "bulwark.dev/identity"

func ofSecret(ctx context.Context, client *kube.Client, namespace, name string) (*shown, error) {
	if !mesh.IsSecretName(name) {
		name = mesh.SecretName(name)
	}
	secret, err := client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("you need the right `get secrets` in namespace %s: %w", namespace, err)
	case err != nil:
		return nil, fmt.Errorf("looking for the Secret: %w", err)
	case secret.Type != mesh.SecretType:
		return nil, fmt.Errorf("Secret %s/%s is of type %s, not one that Citadel keeps", namespace, name, secret.Type)
	}
	access, err := operator.Open(ctx, client)
	if err != nil {
		return nil, err
	}
	account := identities.SecretAccount(secret)
	schedule, asking := renewals(ctx, client)
	var mine identities.Scheduled
	for _, s := range schedule {
		if s.Namespace == namespace && s.ServiceAccount == account {
			mine = s
		}
	}
	s := &shown{Entry: identities.OfSecret(secret, mine, access.TrustDomain(), time.Now())}
	if asking != nil {
		s.Note = "when it is renewed is not known: " + asking.Error() + ";"
	}
	if s.Chain, err = identities.Links(secret.Data[mesh.CertChainKey]); err != nil {
		s.Chain = []identities.Link{} // the entry says that it is damaged
	}
	return s, nil
}

// renewals asks the Citadel that leads when Secrets are renewed.
func renewals(ctx context.Context, client *kube.Client) (schedule []identities.Scheduled, err error) {
	conn, _, err := toLeader(ctx, client)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	err = conn.GetJSON(ctx, "/v1/secrets", &schedule)
	return schedule, err
}

// revocations asks any Citadel.
func revocations(ctx context.Context, client *kube.Client) (list revocation.List, err error) {
	conn, err := toCitadel(ctx, client, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	err = conn.GetJSON(ctx, "/v1/revocations", &list)
	return list, err
}

func writeShown(out *printer.Printer, s *shown, now time.Time) {
	t := out.Table()
	defer t.Flush()
	t.Row("Held by:", s.HeldBy.String())
	if s.HeldBy.UID != "" {
		t.Row("Pod UID:", s.HeldBy.UID)
	}
	t.Row("Identity:", s.Identity)
	state := s.State
	if s.RevokedBy != "" {
		state += ", REVOKED by " + s.RevokedBy + " (meshctl identity restore " + s.RevokedBy + " undoes it)"
	}
	t.Row("State:", state)
	if s.NextRenewal != nil {
		t.Row("Next rotation:", fmt.Sprintf("%s (%s)", s.NextRenewal.UTC().Format(time.RFC3339), identities.In(s.NextRenewal, now)))
	}
	if s.LastError != "" {
		t.Row("Last failure:", fmt.Sprintf("%s, %d in a row", s.LastError, max(1, s.Failures)))
	}
	t.Row("Delivery:", strings.Join(s.Delivery, ", "))
	if s.HeldBy.Kind == identities.Pod {
		held := "none has been taken"
		if s.BundleSequence != nil {
			held = fmt.Sprint(*s.BundleSequence)
		}
		t.Row("Trust bundle:", held)
	}
	for i, c := range s.Chain {
		t.Row(fmt.Sprintf("Certificate %d:", i+1), c.Serial)
		t.Row("  subject:", c.Name)
		t.Row("  issuer:", fmt.Sprintf("%s (key %s)", c.Issuer, c.IssuerKeyID))
		t.Row("  valid:", fmt.Sprintf("%s to %s (%s)", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), left(c.NotAfter)))
	}
	if s.Note != "" {
		t.Row("Note:", strings.TrimSuffix(s.Note, ";"))
	}
}
