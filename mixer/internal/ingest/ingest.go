// Package ingest takes what the node agents send: audit events, acknowledged when they are on disk, and counters.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

const (
	appendTimeout = 30 * time.Second
	maxBatch      = 2000 // events
)

// Server implements telemetryv1.IntakeServer. Only agents reach it: the listener demands their SPIFFE ID.
type Server struct {
	telemetryv1.UnimplementedIntakeServer
	trail   *audit.Trail
	traffic *traffic.Table
	log     *slog.Logger
	events  *prometheus.CounterVec
}

// New returns a server that writes to the trail and the table.
func New(trail *audit.Trail, table *traffic.Table, log *slog.Logger, metrics prometheus.Registerer) *Server {
	s := &Server{trail: trail, traffic: table, log: log, events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bulwark_mixer_audit_events_total", Help: "Audit events taken, by verdict.",
	}, []string{"verdict"})}
	metrics.MustRegister(s.events)
	return s
}

// Events implements Intake.
func (s *Server) Events(stream grpc.BidiStreamingServer[telemetryv1.EventBatch, telemetryv1.Acknowledgement]) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		if batch.GetSpool() == "" || len(batch.GetEvents()) > maxBatch {
			return status.Errorf(codes.InvalidArgument, "a batch names its spool and has at most %d events", maxBatch)
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

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
