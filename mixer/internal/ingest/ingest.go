// Package ingest takes what the node agents and Citadel send: audit events, acknowledged when they are on disk, and the
// agents' counters.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	appendTimeout = 30 * time.Second
	maxBatch      = 2000 // events
)

// Peers are the identities that may call.
type Peers struct {
	Agent   spiffe.ID // events and counters
	Citadel spiffe.ID // events alone, and what it has issued is told by nobody else
}

// Server implements telemetryv1.IntakeServer. Each call is checked for what its peer may send.
type Server struct {
	telemetryv1.UnimplementedIntakeServer
	peers   Peers
	trail   *audit.Trail
	traffic *traffic.Table
	log     *slog.Logger
	events  *prometheus.CounterVec
}

// New returns a server that writes to the trail and the table.
func New(peers Peers, trail *audit.Trail, table *traffic.Table, log *slog.Logger, metrics prometheus.Registerer) *Server {
	s := &Server{peers: peers, trail: trail, traffic: table, log: log, events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bulwark_mixer_audit_events_total", Help: "Audit events taken, by verdict.",
	}, []string{"verdict"})}
	metrics.MustRegister(s.events)
	return s
}

// Events implements Intake.
func (s *Server) Events(stream grpc.BidiStreamingServer[telemetryv1.EventBatch, telemetryv1.Acknowledgement]) error {
	peer, err := s.peer(stream.Context(), s.peers.Agent, s.peers.Citadel)
	if err != nil {
		return err
	}
	for {
		batch, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		if batch.GetSpool() == "" || len(batch.GetEvents()) > maxBatch {
			return status.Errorf(codes.InvalidArgument, "a batch names its spool and has at most %d events", maxBatch)
		}
		if i := slices.IndexFunc(batch.GetEvents(), isIssuance); i >= 0 && peer != s.peers.Citadel {
			return status.Errorf(codes.PermissionDenied, "event %d is of an issuance, which %s does not decide", batch.GetEvents()[i].GetSequence(), peer)
		}
		ctx, cancel := context.WithTimeout(stream.Context(), appendTimeout)
		sequence, err := s.trail.Append(ctx, batch.GetSpool(), batch.GetEvents())
		cancel()
		if err != nil {
			s.log.Error("audit events are not acknowledged", "spool", batch.GetSpool(), "error", err)
			return status.Error(codes.Unavailable, fmt.Sprintf("the audit trail cannot be written: %v", err))
		}
		for _, e := range batch.GetEvents() {
			s.events.WithLabelValues(e.GetVerdict().String()).Inc()
			if e.GetLost() > 0 {
				s.log.Error("audit events were lost", "spool", batch.GetSpool(), "node", e.GetObserver().GetNode(), "count", e.GetLost())
			}
		}
		if err := stream.Send(&telemetryv1.Acknowledgement{Spool: batch.GetSpool(), Sequence: sequence}); err != nil {
			return err
		}
	}
}

// Counters implements Intake.
func (s *Server) Counters(stream grpc.BidiStreamingServer[telemetryv1.NodeReport, telemetryv1.NodeReportTaken]) error {
	if _, err := s.peer(stream.Context(), s.peers.Agent); err != nil {
		return err
	}
	for {
		report, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		s.traffic.Take(report)
		if err := stream.Send(&telemetryv1.NodeReportTaken{}); err != nil {
			return err
		}
	}
}

// peer returns the identity of the caller, if it is one of the allowed.
func (s *Server) peer(ctx context.Context, allowed ...spiffe.ID) (spiffe.ID, error) {
	id, err := mtls.PeerID(ctx)
	if err != nil {
		return spiffe.ID{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if !slices.Contains(allowed, id) {
		s.log.Warn("telemetry refused", "peer", id.String())
		return spiffe.ID{}, status.Errorf(codes.PermissionDenied, "%s may not send this", id)
	}
	return id, nil
}

func isIssuance(e *telemetryv1.Event) bool { return e.GetKind() == telemetryv1.Kind_KIND_ISSUANCE }

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
