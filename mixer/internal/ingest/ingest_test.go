package ingest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

// intake is a Mixer's intake that every member of the mesh may connect to, so that only the calls' own check is left.
type intake struct {
	ca      *svidtest.CA
	address string
	trail   *audit.Trail
	server  *Server
}

func newIntake(t *testing.T) *intake {
	t.Helper()
	private, _, err := note.GenerateKey(nil, audit.Origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	trail, err := audit.Open(ctx, t.TempDir(), signer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trail.Close(ctx); cancel() })
	ca := svidtest.New(t, mesh.DefaultTrustDomain)
	peers := Peers{Agent: ca.ID(mesh.Namespace, mesh.AgentAccount), Citadel: ca.ID(mesh.Namespace, mesh.CitadelAccount)}
	server := grpc.NewServer(mtls.ServerOptions(mtls.Server(ca.SVID(ca.ID(mesh.Namespace, mesh.MixerAccount), time.Now().Add(time.Hour)), ca.Bundle(), mtls.MemberOf(ca.TrustDomain)), mtls.Limits{})...)
	s := New(peers, trail, traffic.New(time.Now), slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	telemetryv1.RegisterIntakeServer(server, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return &intake{ca, l.Addr().String(), trail, s}
}

// as connects with a certificate of an account of the control plane; node is that of its pod, or empty for a certificate of no
// pod.
func (i *intake) as(t *testing.T, account, node string) telemetryv1.IntakeClient {
	t.Helper()
	pod := spiffe.Pod{}
	if node != "" {
		pod = spiffe.Pod{Name: account + "-x", UID: "u", Node: node}
	}
	svid := i.ca.SVIDOf(i.ca.ID(mesh.Namespace, account), pod, time.Now().Add(time.Hour))
	conn, err := grpc.NewClient(i.address, mtls.DialOptions(mtls.Client(svid, i.ca.Bundle(), mtls.MemberOf(i.ca.TrustDomain)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return telemetryv1.NewIntakeClient(conn)
}

// send returns what Mixer answers to one batch.
func (i *intake) send(t *testing.T, account, node, spool string, events ...*telemetryv1.Event) (*telemetryv1.Acknowledgement, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := i.as(t, account, node).Events(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&telemetryv1.EventBatch{Spool: spool, Events: events}) // what became of it, Recv says
	return stream.Recv()
}

func (i *intake) report(t *testing.T, account, node string, r *telemetryv1.NodeReport) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := i.as(t, account, node).Counters(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(r)
	_, err = stream.Recv()
	return err
}

const payroll = "spiffe://cluster.local/ns/finance/sa/payroll"

// request is a decision as an agent of a node tells it.
func request(node string, sequence uint64) *telemetryv1.Event {
	return &telemetryv1.Event{
		Sequence: sequence, Kind: telemetryv1.Kind_KIND_REQUEST, Reporter: telemetryv1.Reporter_REPORTER_DESTINATION, Verdict: telemetryv1.Verdict_VERDICT_ALLOWED,
		Observer:            &telemetryv1.Workload{Node: node, Namespace: "finance", ServiceAccount: "payroll", Identity: payroll},
		DestinationIdentity: payroll, SourceIdentity: "spiffe://cluster.local/ns/a/sa/b",
	}
}

// own is an event of Citadel's.
func own(kind telemetryv1.Kind, sequence uint64) *telemetryv1.Event {
	return &telemetryv1.Event{Sequence: sequence, Kind: kind, Verdict: telemetryv1.Verdict_VERDICT_ALLOWED, Observer: &telemetryv1.Workload{
		Node: "n9", Namespace: mesh.Namespace, ServiceAccount: mesh.CitadelAccount, Identity: "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-citadel"}}
}

func changed(e *telemetryv1.Event, change func(*telemetryv1.Event)) *telemetryv1.Event {
	change(e)
	return e
}

// spoolOf is a name that a spool could have given itself.
func spoolOf(n int) string { return fmt.Sprintf("%032x", n) }

func TestPeersSendOnlyWhatIsTheirs(t *testing.T) {
	i := newIntake(t)
	const denied, ok = codes.PermissionDenied, codes.OK
	kinds := telemetryv1.Kind_value
	n := 0
	for what, c := range map[string]struct {
		account, node string
		event         *telemetryv1.Event
		want          codes.Code
	}{
		"an agent's event":                      {mesh.AgentAccount, "n1", request("n1", 1), ok},
		"an agent's word about what is missing": {mesh.AgentAccount, "n1", &telemetryv1.Event{Sequence: 1, Kind: telemetryv1.Kind_KIND_TRAIL, Lost: 3, Observer: &telemetryv1.Workload{Node: "n1"}}, ok},
		"another node's event":                  {mesh.AgentAccount, "n1", request("n2", 1), denied},
		"an event of no node":                   {mesh.AgentAccount, "n1", request("", 1), denied},
		"an agent without a node":               {mesh.AgentAccount, "", request("", 1), denied},
		"an issuance from an agent":             {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Kind = telemetryv1.Kind_KIND_ISSUANCE }), denied},
		"an operator's act from an agent": {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) {
			e.Kind, e.Method, e.Reason = telemetryv1.Kind_KIND_ADMIN, "Revoke", "by alice"
		}), denied},
		"Citadel's own act from an agent":     {mesh.AgentAccount, "n1", own(telemetryv1.Kind_KIND_ADMIN, 1), denied},
		"a kind to come from an agent":        {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Kind = telemetryv1.Kind(len(kinds) + 7) }), denied},
		"a decision dressed up as missing":    {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Kind, e.Lost = telemetryv1.Kind_KIND_TRAIL, 1 }), denied},
		"an observer that is somebody else":   {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Observer.Namespace = "other" }), denied},
		"an observer of another trust domain": {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Observer.Identity = "spiffe://other/ns/finance/sa/payroll" }), denied},
		"a decision by somebody else's proxy": {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.DestinationIdentity = "spiffe://cluster.local/ns/a/sa/b" }), denied},
		"an event that is too long":           {mesh.AgentAccount, "n1", changed(request("n1", 1), func(e *telemetryv1.Event) { e.Path = strings.Repeat("x", maxEvent) }), denied},
		"Citadel's issuance":                  {mesh.CitadelAccount, "", own(telemetryv1.Kind_KIND_ISSUANCE, 1), ok},
		"Citadel's word of an operator's act": {mesh.CitadelAccount, "", own(telemetryv1.Kind_KIND_ADMIN, 1), ok},
		"missing, by an older Citadel": {mesh.CitadelAccount, "", changed(own(telemetryv1.Kind_KIND_REQUEST, 1), func(e *telemetryv1.Event) {
			e.Lost, e.Verdict = 3, telemetryv1.Verdict_VERDICT_UNSPECIFIED
		}), ok},
		"a request from Citadel":                 {mesh.CitadelAccount, "", request("n1", 1), denied},
		"an issuance by somebody else":           {mesh.CitadelAccount, "", changed(own(telemetryv1.Kind_KIND_ISSUANCE, 1), func(e *telemetryv1.Event) { e.Observer.Identity = payroll }), denied},
		"an issuance to what is no identity":     {mesh.CitadelAccount, "", changed(own(telemetryv1.Kind_KIND_ISSUANCE, 1), func(e *telemetryv1.Event) { e.SourceIdentity = "a\nb" }), denied},
		"an event from Pilot":                    {mesh.PilotAccount, "n1", request("n1", 1), denied},
		"an issuance from a workload's account":  {"payroll", "n1", own(telemetryv1.Kind_KIND_ISSUANCE, 1), denied},
		"an event about Mixer from Mixer's peer": {mesh.MixerAccount, "n1", request("n1", 1), denied},
	} {
		n++
		before := decisions(i.trail)
		_, err := i.send(t, c.account, c.node, spoolOf(n), c.event)
		if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
		if got := decisions(i.trail) - before; (got == 1) != (c.want == ok) {
			t.Errorf("%s: %d events more in the trail", what, got)
		}
	}
	report := func(node string) *telemetryv1.NodeReport {
		return &telemetryv1.NodeReport{Node: node, Workloads: []*telemetryv1.WorkloadReport{{Workload: request(node, 1).Observer}}}
	}
	foreign := report("n1")
	foreign.Workloads[0].Workload.Node = "n2"
	wide := report("n1")
	wide.Workloads[0].Counters = []*telemetryv1.Counter{{Name: "c", Labels: map[string]string{"l": strings.Repeat("x", maxLabel+1)}}}
	for what, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"an agent's report":               {i.report(t, mesh.AgentAccount, "n1", report("n1")), ok},
		"another node's report":           {i.report(t, mesh.AgentAccount, "n1", report("n2")), denied},
		"an empty report of another":      {i.report(t, mesh.AgentAccount, "n1", &telemetryv1.NodeReport{Node: "n2"}), denied},
		"a workload of another node":      {i.report(t, mesh.AgentAccount, "n1", foreign), denied},
		"a label that fills the memory":   {i.report(t, mesh.AgentAccount, "n1", wide), denied},
		"a report from Citadel":           {i.report(t, mesh.CitadelAccount, "", report("n1")), denied},
		"a report from a workload":        {i.report(t, "payroll", "n1", report("n1")), denied},
		"a report by an agent of nowhere": {i.report(t, mesh.AgentAccount, "", report("")), denied},
	} {
		if status.Code(c.err) != c.want {
			t.Errorf("%s: %v, want %s", what, c.err, c.want)
		}
	}
}

// decisions are the events in the trail that are not Mixer's own.
func decisions(trail *audit.Trail) int {
	records, _, _ := trail.Recent(0)
	n := 0
	for _, r := range records {
		if r.GetSpool() != audit.OwnSpool {
			n++
		}
	}
	return n
}

// notes are what Mixer itself has said in the trail.
func notes(trail *audit.Trail) []*telemetryv1.Record {
	records, _, _ := trail.Recent(0)
	return slices.DeleteFunc(records, func(r *telemetryv1.Record) bool { return r.GetSpool() != audit.OwnSpool })
}

// Who learns the name of another node's spool can neither use it up nor write in its name, and the trail says that it tried.
func TestAnAgentCannotSilenceAnotherNode(t *testing.T) {
	i := newIntake(t)
	if _, err := i.send(t, mesh.AgentAccount, "n1", spoolOf(1), request("n1", 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := i.send(t, mesh.AgentAccount, "n2", spoolOf(1), request("n2", 2)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("another's spool: %v", err)
	}
	if _, err := i.send(t, mesh.AgentAccount, "n1", spoolOf(1), request("n1", 1<<63)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a jump: %v", err)
	}
	if _, err := i.send(t, mesh.AgentAccount, "n1", audit.OwnSpool, request("n1", 1)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Mixer's own spool: %v", err)
	}
	got, err := i.send(t, mesh.AgentAccount, "n1", spoolOf(1), request("n1", 2))
	if err != nil || got.GetSequence() != 2 {
		t.Fatalf("the node's own events go on: %v, %v", got, err)
	}
	said := notes(i.trail)
	if len(said) != 2 { // one a sender in a minute
		t.Fatalf("%d refusals in the trail: %v", len(said), said)
	}
	for n, node := range []string{"n2", "n1"} {
		e := said[n].GetEvent()
		if e.GetKind() != telemetryv1.Kind_KIND_TRAIL || e.GetVerdict() != telemetryv1.Verdict_VERDICT_REFUSED || e.GetObserver().GetNode() != node || !strings.Contains(e.GetReason(), "refused") {
			t.Errorf("%v", e)
		}
	}
	if got := testutil.ToFloat64(i.server.refused.WithLabelValues(mesh.AgentAccount)); got != 3 {
		t.Errorf("%v refusals counted", got)
	}
}

func TestTheTrailSaysWhatItDoesNotHave(t *testing.T) {
	i := newIntake(t)
	if _, err := i.send(t, mesh.AgentAccount, "n1", spoolOf(1), request("n1", 5000)); err != nil {
		t.Fatal(err)
	}
	said := notes(i.trail)
	if len(said) != 1 || said[0].GetEvent().GetLost() != 4999 || !strings.Contains(said[0].GetEvent().GetReason(), "before this trail began") {
		t.Fatalf("%v", said)
	}
}

// Events that an agent of an earlier version has spooled name strangers as if they were proven.
func TestWhatIsNoIdentityIsNeverShownAsProven(t *testing.T) {
	i := newIntake(t)
	e := changed(request("n1", 1), func(e *telemetryv1.Event) { e.SourceIdentity = "spiffe://cluster.local/ns/a/sa/b\r\nforged" })
	if _, err := i.send(t, mesh.AgentAccount, "n1", spoolOf(1), e); err != nil {
		t.Fatal(err)
	}
	records, _, _ := i.trail.Recent(0)
	if got := records[0].GetEvent(); got.GetSourceIdentity() != "" || !strings.Contains(got.GetClaimedSource(), "forged") || records[0].GetSender() != "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent on n1" {
		t.Fatalf("%v", records[0])
	}
}
