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
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	appendTimeout = 30 * time.Second
	// noteEvery is how often the trail is told of the refusals of one sender, which may cost it nothing to provoke.
	noteEvery = time.Minute
)

// Peers are the identities that may call.
type Peers struct {
	Agent   spiffe.ID // events and counters
	Citadel spiffe.ID // events alone, and what it has issued and what operators have done is told by nobody else
}

// Server implements telemetryv1.IntakeServer. Each call is checked for what its peer may send.
type Server struct {
	telemetryv1.UnimplementedIntakeServer
	peers   Peers
	trail   *audit.Trail
	traffic *traffic.Table
	log     *slog.Logger
	events  *prometheus.CounterVec
	lost    prometheus.Counter
	refused *prometheus.CounterVec

	mu    sync.Mutex
	noted map[string]time.Time // sender → when the trail was told of a refusal last; senders are bounded by the nodes
}

// New returns a server that writes to the trail and the table.
func New(peers Peers, trail *audit.Trail, table *traffic.Table, log *slog.Logger, metrics prometheus.Registerer) *Server {
	s := &Server{
		peers: peers, trail: trail, traffic: table, log: log, noted: map[string]time.Time{},
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulwark_mixer_audit_events_total", Help: "Audit events taken, by verdict."}, []string{"verdict"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulwark_mixer_audit_lost_total", Help: "Audit events of which their senders say that they are missing."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_mixer_refused_total",
			Help: "Batches of events and reports that their sender had no right to send."}, []string{"account"}),
	}
	metrics.MustRegister(s.events, s.lost, s.refused)
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
		if err := s.peers.check(peer, batch); err != nil {
			return s.refuse(stream.Context(), peer, codes.PermissionDenied, err)
		}
		for _, e := range batch.GetEvents() {
			demote(e)
		}
		ctx, cancel := context.WithTimeout(stream.Context(), appendTimeout)
		sequence, err := s.append(ctx, peer, batch)
		cancel()
		if refusal := audit.Refusal(""); errors.As(err, &refusal) {
			return s.refuse(stream.Context(), peer, codes.FailedPrecondition, refusal)
		}
		if err != nil {
			s.log.Error("audit events are not acknowledged", "sender", peer.String(), "spool", batch.GetSpool(), "error", err)
			return status.Error(codes.Unavailable, fmt.Sprintf("the audit trail cannot be written: %v", err))
		}
		for _, e := range batch.GetEvents() {
			s.events.WithLabelValues(e.GetVerdict().String()).Inc()
			if e.GetLost() > 0 {
				s.lost.Add(float64(e.GetLost()))
				s.log.Error("audit events were lost", "sender", peer.String(), "spool", batch.GetSpool(), "count", e.GetLost())
			}
		}
		if err := stream.Send(&telemetryv1.Acknowledgement{Spool: batch.GetSpool(), Sequence: sequence}); err != nil {
			return err
		}
	}
}

// Counters implements Intake.
func (s *Server) Counters(stream grpc.BidiStreamingServer[telemetryv1.NodeReport, telemetryv1.NodeReportTaken]) error {
	peer, err := s.peer(stream.Context(), s.peers.Agent)
	if err != nil {
		return err
	}
	for {
		report, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		if err := checkReport(peer, report); err != nil {
			return s.refuse(stream.Context(), peer, codes.PermissionDenied, fmt.Errorf("report of counters: %w", err))
		}
		s.traffic.Take(report)
		if err := stream.Send(&telemetryv1.NodeReportTaken{}); err != nil {
			return err
		}
	}
}

// append adds a batch to the trail. The trail says of a spool that is new to it what it does not have.
func (s *Server) append(ctx context.Context, peer sender, batch *telemetryv1.EventBatch) (uint64, error) {
	if events := batch.GetEvents(); len(events) > 0 && events[0].GetSequence() > 1 && !s.trail.Knows(batch.GetSpool()) {
		before := events[0].GetSequence() - 1
		err := s.trail.Note(ctx, &telemetryv1.Event{Time: timestamppb.Now(), Lost: before, Observer: s.observer(peer),
			Reason: fmt.Sprintf("events 1 to %d of spool %s of %s came before this trail began, or were never sent", before, batch.GetSpool(), peer)})
		if err != nil {
			return 0, err
		}
	}
	return s.trail.Append(ctx, peer.String(), batch.GetSpool(), batch.GetEvents())
}

func (s *Server) observer(peer sender) *telemetryv1.Workload {
	return &telemetryv1.Workload{Node: peer.node, Namespace: peer.id.Namespace, ServiceAccount: peer.id.ServiceAccount, Identity: peer.id.String()}
}

// refuse says to the sender, in the log, by a counter and in the trail that it sent what it had no right to send.
func (s *Server) refuse(ctx context.Context, peer sender, code codes.Code, reason error) error {
	s.refused.WithLabelValues(peer.id.ServiceAccount).Inc()
	s.log.Error("telemetry refused", "sender", peer.String(), "reason", reason)
	if s.mayNote(peer) {
		ctx, cancel := context.WithTimeout(ctx, appendTimeout)
		defer cancel()
		err := s.trail.Note(ctx, &telemetryv1.Event{Time: timestamppb.Now(), Verdict: telemetryv1.Verdict_VERDICT_REFUSED, Observer: s.observer(peer),
			SourceIdentity: peer.id.String(), Reason: fmt.Sprintf("what %s sent was refused: %v", peer, reason)})
		if err != nil {
			s.log.Error("a refusal is not in the audit trail", "sender", peer.String(), "error", err)
		}
	}
	return status.Error(code, reason.Error())
}

func (s *Server) mayNote(peer sender) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.noted[peer.String()]) < noteEvery {
		return false
	}
	s.noted[peer.String()] = time.Now()
	return true
}

// peer returns who calls, if it is one of the allowed. An agent speaks for the node that its certificate names, and one whose
// certificate names none for nobody.
func (s *Server) peer(ctx context.Context, allowed ...spiffe.ID) (sender, error) {
	certificate, err := mtls.PeerCertificate(ctx)
	if err != nil {
		return sender{}, status.Error(codes.Unauthenticated, err.Error())
	}
	id, err := spiffe.FromCertificate(certificate)
	if err != nil {
		return sender{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if !slices.Contains(allowed, id) {
		s.log.Warn("telemetry refused", "peer", id.String())
		return sender{}, status.Errorf(codes.PermissionDenied, "%s may not send this", id)
	}
	if id != s.peers.Agent {
		return sender{id: id}, nil
	}
	pod, err := spiffe.PodOf(certificate)
	if err == nil && pod.Node == "" {
		err = errors.New("it names no node")
	}
	if err != nil {
		s.log.Warn("telemetry refused", "peer", id.String(), "error", err)
		return sender{}, status.Errorf(codes.PermissionDenied, "the certificate of %s: %v", id, err)
	}
	return sender{id, pod.Node}, nil
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
