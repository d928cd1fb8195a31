package ingest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

// intake is a Mixer's intake that every member of the mesh may connect to, so that only the calls' own check is left.
type intake struct {
	ca      *svidtest.CA
	address string
	trail   *audit.Trail
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
	telemetryv1.RegisterIntakeServer(server, New(peers, trail, traffic.New(time.Now), slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return &intake{ca, l.Addr().String(), trail}
}

func (i *intake) as(t *testing.T, account string) telemetryv1.IntakeClient {
	t.Helper()
	id := i.ca.ID(mesh.Namespace, account)
	conn, err := grpc.NewClient(i.address, mtls.DialOptions(mtls.Client(i.ca.SVID(id, time.Now().Add(time.Hour)), i.ca.Bundle(), mtls.MemberOf(i.ca.TrustDomain)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return telemetryv1.NewIntakeClient(conn)
}

func TestPeersSendOnlyWhatIsTheirs(t *testing.T) {
	i := newIntake(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	events := func(account string, kind telemetryv1.Kind) codes.Code {
		stream, err := i.as(t, account).Events(ctx)
		if err != nil {
			return status.Code(err)
		}
		_ = stream.Send(&telemetryv1.EventBatch{Spool: account, Events: []*telemetryv1.Event{{Sequence: 1 + uint64(kind), Kind: kind}}})
		_, err = stream.Recv()
		return status.Code(err)
	}
	counters := func(account string) codes.Code {
		stream, err := i.as(t, account).Counters(ctx)
		if err != nil {
			return status.Code(err)
		}
		_ = stream.Send(&telemetryv1.NodeReport{Node: "node1"})
		_, err = stream.Recv()
		return status.Code(err)
	}
	for what, got := range map[string]struct{ code, want codes.Code }{
		"an agent's events":           {events(mesh.AgentAccount, telemetryv1.Kind_KIND_REQUEST), codes.OK},
		"an agent's counters":         {counters(mesh.AgentAccount), codes.OK},
		"an issuance from an agent":   {events(mesh.AgentAccount, telemetryv1.Kind_KIND_ISSUANCE), codes.PermissionDenied},
		"Citadel's issuances":         {events(mesh.CitadelAccount, telemetryv1.Kind_KIND_ISSUANCE), codes.OK},
		"counters from Citadel":       {counters(mesh.CitadelAccount), codes.PermissionDenied},
		"events from Pilot":           {events(mesh.PilotAccount, telemetryv1.Kind_KIND_REQUEST), codes.PermissionDenied},
		"counters from someone else":  {counters("payroll"), codes.PermissionDenied},
		"an issuance from a workload": {events("payroll", telemetryv1.Kind_KIND_ISSUANCE), codes.PermissionDenied},
	} {
		if got.code != got.want {
			t.Errorf("%s: %s, want %s", what, got.code, got.want)
		}
	}
	if n := i.trail.Size(); n != 2 {
		t.Errorf("%d events in the trail, want 2", n)
	}
}
