package issue

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const payrollID = "spiffe://cluster.local/ns/finance/sa/payroll"

func TestRevokedGetNothing(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	s.withTokenKey(t)
	svid := s.certificate(t, "finance", "payroll", payrollPod)
	serial := svid.Certificates[0].SerialNumber.Text(16)
	certificate := func(ctx context.Context) error {
		_, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
		return err
	}
	token := func(ctx context.Context) error {
		_, err := s.CreateToken(ctx, &identityv1.TokenRequest{Audience: []string{"vault"}})
		return err
	}
	tokens, renewal, dying := as("payroll", "agent1"), presenting(svid.Certificates), as("dying", "agent1")
	agent := "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent"
	for name, test := range map[string]struct {
		revoked revocation.Revocation
		refused func() []error
		allowed func() []error
	}{
		"an identity": {revocation.Revocation{Identity: payrollID},
			func() []error {
				return []error{certificate(tokens), certificate(renewal), certificate(dying), token(tokens), token(renewal)}
			},
			func() []error { return []error{certificate(as("pilot"))} }},
		"a certificate": {revocation.Revocation{Identity: payrollID, Serial: serial},
			func() []error { return []error{certificate(renewal), token(renewal)} },
			func() []error { return []error{certificate(tokens), certificate(dying)} }},
		"a certificate and its pod": {revocation.Revocation{Identity: payrollID, Serial: "abc", PodUID: "u1"},
			func() []error { return []error{certificate(tokens), certificate(renewal), token(tokens)} },
			func() []error { return []error{certificate(dying)} }},
		"the agent that asks": {revocation.Revocation{Identity: agent, Serial: "abc", PodUID: "ua"},
			func() []error { return []error{certificate(tokens), certificate(as("agent1"))} },
			func() []error { return []error{certificate(as("agent2"))} }},
	} {
		r := test.revoked
		r.Name, r.Reason, r.Created, r.Expires = "r1", "stolen", start, start.Add(time.Hour)
		*s.revoked = revocation.List{r}
		for i, err := range test.refused() {
			if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "revoked (r1): stolen") {
				t.Errorf("%s, call %d: %v", name, i, err)
			}
		}
		for i, err := range test.allowed() {
			if err != nil {
				t.Errorf("%s, allowed call %d: %v", name, i, err)
			}
		}
	}
	*s.revoked = revocation.List{{Name: "r1", Identity: payrollID, Created: start, Expires: start.Add(time.Minute)}}
	s.clock.SetTime(start.Add(2 * time.Minute))
	if err := certificate(tokens); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestNothingIsIssuedBeforeRevocationsAreKnown(t *testing.T) {
	s := newService(t, newCluster(t))
	s.Ready = func() error { return errors.New("the list of revocations has not been read yet") }
	if _, err := s.CreateCertificate(as("pilot"), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); status.Code(err) != codes.Unavailable {
		t.Fatalf("%v", err)
	}
}

func TestDecisionsAreInTheTrail(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	resp, err := s.CreateCertificate(as("payroll", "agent1"), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	if err != nil {
		t.Fatal(err)
	}
	e := s.trail.last(t)
	if e.GetKind() != telemetryv1.Kind_KIND_ISSUANCE || e.GetVerdict() != telemetryv1.Verdict_VERDICT_ALLOWED || e.GetSourceIdentity() != payrollID ||
		e.GetCertificateSerial() != leafOf(t, resp).SerialNumber.Text(16) || e.GetMethod() != "CreateCertificate" || e.GetProtocol() != "gRPC" ||
		e.GetSubject().GetPod() != "payroll-1" || e.GetSubject().GetPodUid() != "u1" || e.GetSubject().GetNode() != "node1" || e.GetSubject().GetServiceAccount() != "payroll" {
		t.Errorf("issued: %v", e)
	}
	for name, test := range map[string]struct {
		ctx      context.Context
		csr      string
		identity string
		reason   string
	}{
		"a stranger":         {as("rubbish"), "", "", "not valid"},
		"another node":       {as("payroll", "agent2"), "", payrollID, "node2"},
		"a CSR that is none": {as("payroll", "agent1"), "x", payrollID, "PEM"},
		"a pod that is gone": {as("gone", "agent1"), "", payrollID, "does not exist"},
		"a Secret's renewal": {presenting(s.certificate(t, "finance", "payroll", spiffe.Pod{}).Certificates), "", payrollID, "names no pod"},
	} {
		if _, err := s.CreateCertificate(test.ctx, &securityapi.IstioCertificateRequest{Csr: test.csr}); err == nil {
			t.Fatalf("%s: issued", name)
		}
		e := s.trail.last(t)
		if e.GetVerdict() != telemetryv1.Verdict_VERDICT_REFUSED || e.GetSourceIdentity() != test.identity || !strings.Contains(e.GetReason(), test.reason) {
			t.Errorf("%s: %v", name, e)
		}
	}
	before := len(s.trail.events)
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := spiffe.New("cluster.local", mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Issue(id, key.Public(), 0); err != nil || len(s.trail.events) != before+1 {
		t.Errorf("Citadel's own certificate: %v, %d events", err, len(s.trail.events)-before)
	}
}
