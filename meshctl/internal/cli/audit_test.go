package cli

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

const member = "spiffe://cluster.local/ns/finance/sa/payroll"

func TestARowSaysWhoHasProvenWhat(t *testing.T) {
	const allowed, refused = telemetryv1.Verdict_VERDICT_ALLOWED, telemetryv1.Verdict_VERDICT_REFUSED
	citadel := &telemetryv1.Workload{Identity: "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-citadel"}
	for name, c := range map[string]struct {
		event   *telemetryv1.Event
		has     string // of the row, with bars between the columns
		without string
	}{
		"a member":                   {&telemetryv1.Event{Verdict: allowed, SourceIdentity: member}, "|finance/payroll|", "claims"},
		"a stranger":                 {&telemetryv1.Event{Verdict: refused, ClaimedSource: member}, "|claims " + member + "|", "|finance/payroll|"},
		"an impostor":                {&telemetryv1.Event{Verdict: refused, SourceIdentity: member, ClaimedDestination: "spiffe://x/y"}, "|finance/payroll|claims spiffe://x/y|", ""},
		"what selects nothing":       {&telemetryv1.Event{Verdict: allowed, Reason: "no enforced ALLOW policy selects the workload"}, "|no enforced ALLOW policy", ""},
		"what is tried out":          {&telemetryv1.Event{Verdict: allowed, Policy: "finance/a rule 0", Trial: &telemetryv1.Trial{Verdict: telemetryv1.Verdict_VERDICT_DENIED, Policy: "finance/b rule 1"}}, "|finance/a rule 0; on trial denied: finance/b rule 1", ""},
		"what is tried out in vain":  {&telemetryv1.Event{Verdict: allowed, Trial: &telemetryv1.Trial{Verdict: telemetryv1.Verdict_VERDICT_DENIED, Reason: "no ALLOW policy"}}, "|-; on trial denied: no ALLOW policy", ""},
		"nothing known":              {&telemetryv1.Event{Verdict: allowed}, "|-", "policy"},
		"an issuance":                {&telemetryv1.Event{Kind: telemetryv1.Kind_KIND_ISSUANCE, Verdict: allowed, Observer: citadel, SourceIdentity: member, CertificateSerial: "3fb2", Method: "CreateCertificate"}, "|CreateCertificate|certificate 3fb2", "policy"},
		"an operator's act":          {&telemetryv1.Event{Kind: telemetryv1.Kind_KIND_ADMIN, Verdict: allowed, Observer: citadel, Method: "Revoke", Reason: "by alice: stolen"}, "|bulwark-system/bulwark-citadel|Revoke|by alice: stolen", "no policy"},
		"events that are missing":    {&telemetryv1.Event{Kind: telemetryv1.Kind_KIND_TRAIL, Lost: 3, Observer: &telemetryv1.Workload{Node: "n1"}, Reason: "full"}, "|3 LOST|-|node n1|audit trail|full", "policy"},
		"what Mixer did not take":    {&telemetryv1.Event{Kind: telemetryv1.Kind_KIND_TRAIL, Verdict: refused, Observer: &telemetryv1.Workload{Node: "n1"}, Reason: "a jump"}, "|REFUSED|-|node n1|audit trail|a jump", ""},
		"missing, by an older agent": {&telemetryv1.Event{Lost: 3, Observer: &telemetryv1.Workload{Node: "n1"}}, "|3 LOST|-|node n1|audit trail|the spool was full", ""},
	} {
		got := strings.Join(row(c.event), "|")
		if !strings.Contains(got, c.has) || c.without != "" && strings.Contains(got, c.without) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Every field that holds text is shown to hold the worst, in each kind of event.
func TestARowIsOneLineWhateverStrangersChose(t *testing.T) {
	const bad = "a\r\n19:00:00.000  allowed   forged\x1b[2K\u202e\u009b\t"
	for _, kind := range []telemetryv1.Kind{telemetryv1.Kind_KIND_REQUEST, telemetryv1.Kind_KIND_ISSUANCE, telemetryv1.Kind_KIND_ADMIN, telemetryv1.Kind_KIND_TRAIL} {
		e := &telemetryv1.Event{Kind: kind}
		fields := e.ProtoReflect().Descriptor().Fields()
		for only := range fields.Len() {
			e := &telemetryv1.Event{Kind: kind, Observer: &telemetryv1.Workload{Node: bad, Identity: bad}}
			switch f := fields.Get(only); {
			case f.Kind() == protoreflect.StringKind:
				e.ProtoReflect().Set(f, protoreflect.ValueOfString(bad))
			case f.Name() == "trial":
				e.Trial = &telemetryv1.Trial{Policy: bad}
			}
			var out bytes.Buffer
			printer.New(&out).Columns(widths, row(e)...)
			if line := strings.TrimSuffix(out.String(), "\n"); !printable.Is(line) {
				t.Errorf("%s, %s: %q", kind, fields.Get(only).Name(), line)
			}
		}
	}
}
