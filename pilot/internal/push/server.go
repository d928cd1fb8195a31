package push

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Limits of an agent's stream.
const (
	maxOpening       = 64 << 20 // bytes of what it says that it has
	openingWithin    = 15 * time.Second
	reportsPerSecond = 200
)

// Server serves agents.
type Server struct {
	nodev1.UnimplementedNodeConfigurationServer
	store   *Store
	options Options
	events  *rate.Limiter
	log     *slog.Logger
}

// Options are what a server needs beside its store.
type Options struct {
	Certificate func(context.Context) (*x509.Certificate, error) // that a call's client has proved to have
	MaxProxies  int                                              // pods that have their configuration from here
	Recorder    Recorder                                         // of Events on pods
	UnknownKey  func(pod string)                                 // hears of pods ("namespace/name") whose proxies have refused a token of a key that they do not have
	Clock       clock.Clock
	Log         *slog.Logger
}

// NewServer returns a server of the store.
func NewServer(store *Store, o Options) *Server {
	return &Server{store: store, options: o, events: rate.NewLimiter(eventsPerSecond, eventsAtOnce), log: o.Log}
}

type followStream = nodev1.NodeConfiguration_FollowServer

// Follow implements NodeConfiguration: it serves one agent.
func (s *Server) Follow(rpc followStream) error {
	own, err := s.agentOf(rpc.Context())
	if err != nil {
		s.store.metrics.refused.WithLabelValues("unauthenticated").Inc()
		s.log.Warn("refused an agent", "error", err)
		return err
	}
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	heard := hear(ctx, rpc)
	opening, err := heard.opening(ctx)
	if err != nil {
		return err
	}
	a := newAgent(s.store, own, s.options.MaxProxies)
	defer s.store.disconnect(a)
	if err := s.store.connect(a, opening); err != nil {
		return err
	}
	log := s.log.With("node", own.Node, "agent", own.Name)
	log.Info("agent connected", "pods", len(opening[0].GetPods()))
	err = s.serveAgent(ctx, rpc, a, heard)
	log.Info("agent left", "error", err)
	return err
}

// agentOf returns the agent that calls, by its certificate, which names its node.
func (s *Server) agentOf(ctx context.Context) (spiffe.Pod, error) {
	certificate, err := s.options.Certificate(ctx)
	if err != nil {
		return spiffe.Pod{}, status.Error(codes.Unauthenticated, err.Error())
	}
	id, err := spiffe.FromCertificate(certificate)
	if err != nil {
		return spiffe.Pod{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if !slices.Contains(s.store.settings.TrustDomains(), id.TrustDomain) || id.Namespace != mesh.Namespace || id.ServiceAccount != mesh.AgentAccount {
		return spiffe.Pod{}, status.Errorf(codes.PermissionDenied, "%s is no agent", id)
	}
	pod, err := spiffe.PodOf(certificate)
	if err == nil && pod.Node == "" {
		err = errors.New("it names no node")
	}
	if err != nil {
		return spiffe.Pod{}, status.Errorf(codes.PermissionDenied, "the certificate of %s: %v", id, err)
	}
	return pod, nil
}

// serveAgent sends updates, one at a time, until the stream ends.
func (s *Server) serveAgent(ctx context.Context, rpc followStream, a *agent, heard *hearing) error {
	out, sent := make(chan *nodexds.Outgoing), make(chan error, 1)
	defer close(out)
	// Sending waits for the agent's flow control, while what it says is heard. The goroutine ends, if it is in the midst of sending,
	// when gRPC ends the stream because Follow has returned.
	go func() {
		for u := range out {
			sent <- s.send(rpc, u)
		}
	}()
	limit := s.options.Clock.NewTimer(deltaxds.StallLimit)
	defer limit.Stop()
	var due time.Time // the agent has to have applied what was sent; zero: nothing
	for sending := false; ; {
		if !sending {
			if u, since := s.store.next(a); u != nil {
				due = s.options.Clock.Now().Add(deltaxds.StallLimit)
				limit.Reset(deltaxds.StallLimit)
				out <- u
				sending = true
				if !since.IsZero() {
					s.store.metrics.convergence.Observe(time.Since(since).Seconds())
				}
			} else if !s.store.owes(a) {
				due = time.Time{}
			}
		}
		select {
		case r := <-heard.reports:
			stalls, err := s.store.hear(a, r)
			if err != nil {
				return err
			}
			for _, st := range stalls {
				s.proxyStalled(st)
			}
			for _, pod := range s.store.subjectsAmong(a, r.GetUnknownKeys()) {
				s.options.UnknownKey(pod)
			}
		case <-a.wake:
		case err := <-sent:
			if err != nil {
				return err
			}
			sending = false
		case <-limit.C():
			if !due.IsZero() && !s.options.Clock.Now().Before(due) {
				return s.agentStalled(a)
			}
		case err := <-heard.failed:
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) send(rpc followStream, u *nodexds.Outgoing) error {
	m := s.store.metrics
	for _, c := range u.Changes {
		m.pushed.WithLabelValues(short(c.Type)).Add(float64(len(c.Resources)))
	}
	m.updates.Inc()
	for _, part := range u.Parts() {
		if err := rpc.SendMsg(part); err != nil {
			return fmt.Errorf("sending update %d: %w", u.Number, err)
		}
	}
	return nil
}

// hearing is what an agent says, at a rate that is bounded.
type hearing struct {
	reports chan *nodev1.Report
	failed  chan error
}

// hear reads until the stream ends, which gRPC sees to when the call returns.
func hear(ctx context.Context, rpc followStream) *hearing {
	h := &hearing{make(chan *nodev1.Report), make(chan error, 1)}
	pace := rate.NewLimiter(reportsPerSecond, reportsPerSecond)
	go func() {
		for {
			r, err := rpc.Recv()
			if err == nil {
				err = pace.Wait(ctx)
			}
			if err != nil {
				h.failed <- err
				return
			}
			select {
			case h.reports <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return h
}

// opening waits for what the agent says it has, and not for ever.
func (h *hearing) opening(ctx context.Context) (out []*nodev1.Report, err error) {
	timer := time.NewTimer(openingWithin)
	defer timer.Stop()
	for size := 0; ; {
		select {
		case r := <-h.reports:
			if size += proto.Size(r); size > maxOpening {
				return nil, status.Errorf(codes.ResourceExhausted, "the agent has more than %d bytes to say that it has", maxOpening)
			}
			if out = append(out, r); !r.GetMore() {
				return out, nil
			}
		case err := <-h.failed:
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.InvalidArgument, "the agent did not say what it has")
			}
			return nil, err
		case <-timer.C:
			return nil, status.Error(codes.DeadlineExceeded, "the agent did not say what it has")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
