// Package holdings tells the components which trust bundle is in force, and hears from them which one they hold. A root
// rotation waits for what is heard here, not for a time after which everyone might have it.
package holdings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/bundle"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// What one component may say: an agent has a few hundred pods, and certificates of one or two issuers.
const (
	maxIssuers = 16
	maxBehind  = 20
	maxName    = 253
)

// componentOf says who is who by the service account.
var componentOf = map[string]string{
	mesh.PilotAccount: "pilot", mesh.CitadelAccount: "citadel", mesh.MixerAccount: "mixer", mesh.AgentAccount: "agent",
}

// Server implements identityv1.TrustBundles. Only the replica that leads answers.
type Server struct {
	identityv1.UnimplementedTrustBundlesServer
	keeper      *ca.Keeper
	pods        *podwatch.Watch
	documents   *bundle.Documents
	trustDomain string
	audit       *auditlog.Log
	log         *slog.Logger

	mu      sync.Mutex
	leading chan struct{}                  // closed when this replica leads no more; nil while it does not lead
	heard   map[string]*identityv1.Holding // by pod
	changed chan struct{}
}

// New returns a server that answers while it leads. Whom it refuses is in the audit trail.
func New(keeper *ca.Keeper, pods *podwatch.Watch, documents *bundle.Documents, audit *auditlog.Log, log *slog.Logger) *Server {
	return &Server{keeper: keeper, pods: pods, documents: documents, trustDomain: documents.TrustDomain, audit: audit, log: log, heard: map[string]*identityv1.Holding{}, changed: make(chan struct{})}
}

// Lead answers until ctx ends. What was heard in an earlier time of leading is forgotten.
func (s *Server) Lead(ctx context.Context) {
	done := make(chan struct{})
	s.mu.Lock()
	s.leading, s.heard = done, map[string]*identityv1.Holding{}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.leading = nil
	s.mu.Unlock()
	close(done)
}

// Watch implements TrustBundles.
func (s *Server) Watch(stream grpc.BidiStreamingServer[identityv1.Holding, identityv1.Bundle]) error {
	component, err := s.admit(stream.Context())
	if err != nil {
		return err
	}
	s.mu.Lock()
	done := s.leading
	s.mu.Unlock()
	if done == nil {
		return status.Error(codes.Unavailable, "this replica of Citadel does not lead")
	}
	failed := make(chan error, 1)
	go func() { failed <- s.hear(stream, component) }() // ends with the stream
	for {
		changed := s.keeper.Changed()
		message, err := s.current()
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(message); err != nil {
			return err
		}
		select {
		case <-changed:
		case err := <-failed:
			return err
		case <-done:
			return status.Error(codes.Unavailable, "this replica of Citadel leads no more")
		case <-stream.Context().Done():
			return nil
		}
	}
}

// admit returns which component calls.
func (s *Server) admit(ctx context.Context) (string, error) {
	refused := auditlog.Decision{Method: auditlog.WatchBundle, Protocol: "gRPC"}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		refused.Peer = p.Addr.String()
	}
	id, err := mtls.PeerID(ctx)
	component := componentOf[id.ServiceAccount]
	switch {
	case err != nil:
		err = status.Errorf(codes.Unauthenticated, "the trust bundle is watched over mutual TLS: %v", err)
	case id.TrustDomain != s.trustDomain || id.Namespace != mesh.Namespace || component == "":
		refused.Identity = id.String()
		err = status.Errorf(codes.PermissionDenied, "%s is not a component of the control plane", id)
	default:
		return component, nil
	}
	if s.audit.Refused(refused, status.Convert(err).Message()) {
		s.log.Warn("refused a stream of trust bundles", "peer", refused.Peer, "identity", refused.Identity, "reason", status.Convert(err).Message())
	}
	return "", err
}

func (s *Server) hear(stream grpc.BidiStreamingServer[identityv1.Holding, identityv1.Bundle], component string) error {
	for {
		h, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := check(h, component); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		pod, ok := s.pods.Get(mesh.Namespace, h.GetPod())
		if !ok || pod.Component != component {
			return status.Errorf(codes.NotFound, "no pod %s/%s of %s is known", mesh.Namespace, h.GetPod(), component)
		}
		s.Note(h)
	}
}

func check(h *identityv1.Holding, component string) error {
	switch {
	case h.GetComponent() != component:
		return fmt.Errorf("the certificate is of %s, not of %q", component, h.GetComponent())
	case h.GetPod() == "" || len(h.GetPod()) > maxName || len(h.GetNode()) > maxName:
		return errors.New("a holding names the pod of the component")
	case len(h.GetIssuers()) > maxIssuers || len(h.GetBehind()) > maxBehind:
		return fmt.Errorf("a holding names at most %d issuers and %d pods", maxIssuers, maxBehind)
	}
	for _, name := range h.GetBehind() {
		if len(name) > 2*maxName {
			return errors.New("a name is too long")
		}
	}
	for issuer := range h.GetIssuers() {
		if len(issuer) > 128 {
			return errors.New("an issuer's name is too long")
		}
	}
	return nil
}

// current returns the message of the keeper's state.
func (s *Server) current() (*identityv1.Bundle, error) {
	state := s.keeper.Current()
	document, err := s.documents.Document(state)
	if err != nil {
		return nil, err
	}
	return &identityv1.Bundle{
		Sequence: state.Sequence, Document: document, Issuer: state.Signer.Certificate().SubjectKeyId, RenewWithin: durationpb.New(state.RenewWithin),
	}, nil
}

// Changed returns a channel that is closed when something new is heard. Take it before looking at Holders.
func (s *Server) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Holders returns the live components and what they hold, whether they have said so or not. A component's pod that is
// being deleted does not count: what comes in its place reads the bundle of its day. But a node with members of the mesh
// and no agent, because its agent is being replaced, has members of whom nobody says what they hold.
func (s *Server) Holders() []rotate.Holder {
	live, agents, members := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var out []rotate.Holder
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pod := range s.pods.All() {
		if pod.Member && !pod.Ended && pod.Node != "" {
			members[pod.Node] = true
		}
		if pod.Component == "" || componentOf["bulwark-"+pod.Component] == "" || pod.Ended || !pod.DeletedAt.IsZero() || pod.Node == "" {
			continue
		}
		live[pod.Name] = true
		if pod.Component == "agent" {
			agents[pod.Node] = true
		}
		holder := rotate.Holder{Component: pod.Component, Pod: pod.Name, Node: pod.Node}
		if h := s.heard[pod.Name]; h != nil {
			holder.Heard, holder.Sequence, holder.ProxiesSequence = true, h.GetSequence(), h.GetProxiesSequence()
			holder.Issuers, holder.Behind = maps.Clone(h.GetIssuers()), h.GetBehind()
		}
		out = append(out, holder)
	}
	for _, node := range slices.Sorted(maps.Keys(members)) {
		if !agents[node] {
			out = append(out, rotate.Holder{Component: "agent", Pod: "(none)", Node: node})
		}
	}
	maps.DeleteFunc(s.heard, func(pod string, _ *identityv1.Holding) bool { return !live[pod] })
	return out
}

// Note puts in what a component holds: one that is heard, or this replica itself, which needs no stream.
func (s *Server) Note(h *identityv1.Holding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leading == nil {
		return
	}
	s.heard[h.GetPod()] = h
	close(s.changed)
	s.changed = make(chan struct{})
}
