// Package relay carries xDS between the Envoys of a node and Pilot. It ends their streams: what Pilot has sent is in a nodexds.Node, once for
// all pods, so an Envoy that starts while Pilot is away is served, and a Pilot that comes back sends only what has changed.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Config says where Pilot is, and who asks it.
type Config struct {
	Pilot       string // address
	TrustDomain string
	Agent       Agent
	Bundle      *svid.Bundle // by which Envoys verify their peers
	Clock       clock.Clock
	Metrics     *Metrics
	Log         *slog.Logger
}

// Agent is the agent's own identity, whose certificate names the node: a svid.Source.
type Agent interface {
	x509svid.Source
	x509bundle.Source
	WaitReady(context.Context) error
}

// Relay is that of a node.
type Relay struct {
	config Config
	node   *nodexds.Node
}

// New returns the relay of a node without pods.
func New(c Config) *Relay { return &Relay{config: c, node: nodexds.New(c.Clock, closer.Version)} }

// Attach adds ADS to a pod's socket. The pod is the node's from now until what is returned has run.
func (r *Relay) Attach(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
	discovery.RegisterAggregatedDiscoveryServiceServer(s, &server{
		relay: r, pod: p, secrets: sds.New(p, r.config.Bundle, r.config.Log), log: r.config.Log.With("pod", p.String())})
	r.node.Add(p.Facts.UID, p.String(), p.ID.String())
	return func(ctx context.Context) {
		<-ctx.Done()
		r.node.Remove(p.Facts.UID)
	}
}

// UnknownKey tells Pilot that a pod's proxy has refused a token whose key it does not have.
func (r *Relay) UnknownKey(uid string) { r.node.UnknownKey(uid) }

// Run keeps a stream to Pilot until ctx ends, from when the agent has an SVID.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.config.Agent.WaitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	pilot, err := spiffe.New(r.config.TrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(r.config.Pilot, append(mtls.DialOptions(mtls.Client(r.config.Agent, r.config.Agent, mtls.OneOf(pilot))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(nodexds.MaxMessage)))...)
	if err != nil {
		return fmt.Errorf("Pilot's address %q: %w", r.config.Pilot, err)
	}
	defer conn.Close()
	r.node.Run(ctx, func(ctx context.Context) (nodexds.RPC, error) {
		return nodev1.NewNodeConfigurationClient(conn).Follow(ctx, grpc.WaitForReady(true))
	}, r.config.Log)
	return nil
}

// server is what the Envoy of one pod speaks with.
type server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	relay   *Relay
	pod     *identity.Identity
	secrets *sds.Server
	log     *slog.Logger
}

// DeltaAggregatedResources implements AggregatedDiscoveryService.
func (s *server) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	first, err := rpc.Recv()
	if err != nil {
		return err
	}
	if err := s.admit(first.GetNode()); err != nil {
		s.log.Warn("a proxy's configuration stream was refused", "error", err)
		return err
	}
	secrets := s.secrets.Open()
	defer secrets.Close()
	class := first.GetNode().GetMetadata().GetFields()[mesh.ClassMetadata].GetStringValue()
	proxy := s.relay.node.Proxy(s.pod.Facts.UID, first.GetNode().GetId(), class)
	stream := deltaxds.NewStream(source{proxy, secrets, s.log}, s.relay.config.Clock)
	proxy.Begin(stream)
	ctx, cancel := context.WithCancel(rpc.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.secrets.Follow(ctx, stream.Dirty) })
	defer wg.Wait()
	defer cancel()
	err = stream.Serve(sharing{rpc}, first)
	proxy.End(err)
	var stalled *deltaxds.Stalled
	if errors.As(err, &stalled) {
		s.relay.config.Metrics.stalled.Inc()
		s.log.Error("the proxy does not take its configuration; its stream begins anew", "type", stalled.Type, "resources", deltaxds.Quoted(stalled.Names),
			"for", stalled.For.String(), "waitsFor", stalled.Waits)
		return status.Error(codes.Aborted, err.Error())
	}
	return err
}

// admit holds Envoy to the pod whose socket it is on: people find it by its node's ID.
func (s *server) admit(node *core.Node) error {
	parts := strings.Split(node.GetId(), "~")
	if len(parts) != 4 || parts[2] != s.pod.Facts.Pod+"."+s.pod.Facts.Namespace {
		return status.Errorf(codes.PermissionDenied, "node ID %q is not that of pod %s in namespace %s", node.GetId(), s.pod.Facts.Pod, s.pod.Facts.Namespace)
	}
	return nil
}

// sharing sends responses without copying the resources in them.
type sharing struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (s sharing) SendShared(r *deltaxds.Response) error { return s.SendMsg(r) }

// source serves secrets from the agent and everything else as Pilot has it.
type source struct {
	*nodexds.Proxy
	secrets *sds.Session
	log     *slog.Logger
}

func (s source) Resource(typeURL, name string) (*deltaxds.Resource, bool) {
	if typeURL == deltaxds.SecretType {
		return s.secrets.Resource(typeURL, name)
	}
	return s.Proxy.Resource(typeURL, name)
}

func (s source) Wildcard(typeURL string) ([]string, bool) {
	if typeURL == deltaxds.SecretType {
		return s.secrets.Wildcard(typeURL)
	}
	return s.Proxy.Wildcard(typeURL)
}

func (s source) Subscribed(typeURL string, added, removed []string) {
	if typeURL == deltaxds.SecretType {
		s.secrets.Subscribed(typeURL, added, removed)
	}
}

// Took implements deltaxds.Witness for the secrets.
func (s source) Took(typeURL string, versions map[string]string) { s.secrets.Took(typeURL, versions) }

// Refused implements deltaxds.Witness.
func (s source) Refused(typeURL string, versions map[string]string, reason string) {
	s.secrets.Refused(typeURL, versions, reason)
	for name := range versions {
		s.log.Warn("the proxy refused configuration", "type", typeURL, "resource", name, "reason", reason)
	}
}
