package relay

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Config says where Pilot is.
type Config struct {
	Pilot       string // address
	TrustDomain string
	Bundle      *svid.Bundle
	Clock       clock.Clock
	Log         *slog.Logger
}

// Relay is that of one pod.
type Relay struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	config  Config
	pod     *identity.Identity
	secrets *sds.Server
	cache   *cache
	log     *slog.Logger

	mu      sync.Mutex
	node    *core.Node
	streams map[*deltaxds.Stream]bool
	heard   chan struct{} // capacity one: Envoy has said something, which may be the answer that Pilot waits for
}

// Attach adds ADS to a pod's socket.
func Attach(c Config) func(*identity.Identity, grpc.ServiceRegistrar) func(context.Context) {
	return func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
		r := New(c, p)
		discovery.RegisterAggregatedDiscoveryServiceServer(s, r)
		return r.Run
	}
}

// New returns the relay of a pod.
func New(c Config, p *identity.Identity) *Relay {
	return &Relay{
		config: c, pod: p, secrets: sds.New(p, c.Bundle, c.Log), cache: newCache(),
		log:     c.Log.With("pod", p.Facts.Namespace+"/"+p.Facts.Pod),
		streams: map[*deltaxds.Stream]bool{}, heard: make(chan struct{}, 1),
	}
}

// DeltaAggregatedResources implements AggregatedDiscoveryService: Envoy's side.
func (r *Relay) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	first, err := rpc.Recv()
	if err != nil {
		return err
	}
	if err := r.admit(first.GetNode()); err != nil {
		r.log.Warn("a proxy's configuration stream was refused", "error", err)
		return err
	}
	secrets := r.secrets.Open()
	defer secrets.Close()
	stream := deltaxds.NewStream(source{r, secrets}, r.config.Clock)
	r.mu.Lock()
	r.node = first.GetNode()
	r.streams[stream] = true
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(rpc.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.secrets.Follow(ctx, stream.Dirty) })
	defer wg.Wait()
	defer cancel()
	defer func() {
		r.mu.Lock()
		delete(r.streams, stream)
		r.mu.Unlock()
		r.notice()
	}()
	return stream.Serve(&listening{rpc, r.notice}, first)
}

// admit holds Envoy to the pod whose socket it is on: Pilot reads names out of the node's ID.
func (r *Relay) admit(node *core.Node) error {
	parts := strings.Split(node.GetId(), "~")
	if len(parts) != 4 || parts[2] != r.pod.Facts.Pod+"."+r.pod.Facts.Namespace {
		return status.Errorf(codes.PermissionDenied, "node ID %q is not that of pod %s in namespace %s", node.GetId(), r.pod.Facts.Pod, r.pod.Facts.Namespace)
	}
	return nil
}

// source serves secrets from the agent and everything else from Pilot.
type source struct {
	*Relay
	secrets *sds.Session
}

func (s source) Resource(typeURL, name string) (*deltaxds.Resource, bool) {
	if typeURL == deltaxds.SecretType {
		return s.secrets.Resource(typeURL, name)
	}
	return s.cache.Resource(typeURL, name)
}

func (s source) Wildcard(typeURL string) ([]string, bool) {
	if typeURL == deltaxds.SecretType {
		return s.secrets.Wildcard(typeURL)
	}
	return s.cache.Wildcard(typeURL)
}

func (s source) Subscribed(typeURL string, added, removed []string) {
	if typeURL == deltaxds.SecretType {
		s.secrets.Subscribed(typeURL, added, removed)
		return
	}
	s.cache.Subscribed(typeURL, added, removed)
}

// Took and Refused implement deltaxds.Witness for the secrets.
func (s source) Took(typeURL string, versions map[string]string) { s.secrets.Took(typeURL, versions) }

func (s source) Refused(typeURL string, versions map[string]string, reason string) {
	s.secrets.Refused(typeURL, versions, reason)
}

// listening tells when Envoy has said something.
type listening struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	heard func()
}

func (l *listening) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	req, err := l.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv()
	l.heard()
	return req, err
}

func (r *Relay) notice() {
	select {
	case r.heard <- struct{}{}:
	default:
	}
}

// dirty tells every stream of Envoy that resources have changed.
func (r *Relay) dirty(typeURL string, names []string) {
	for _, s := range r.connected() {
		s.Dirty(typeURL, names...)
	}
}

func (r *Relay) connected() []*deltaxds.Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*deltaxds.Stream, 0, len(r.streams))
	for s := range r.streams {
		out = append(out, s)
	}
	return out
}

// answered says whether every connected Envoy has taken or refused what it was sent of a type, and why if it refused.
// With none connected the cache is what takes it.
func (r *Relay) answered(typeURL string) (done bool, refusal string) {
	for _, s := range r.connected() {
		st, ok := s.Status()[typeURL]
		if ok && st.Pending {
			return false, ""
		}
		if st.Error != "" {
			refusal = st.Error
		}
	}
	return true, refusal
}

func (r *Relay) lastNode() *core.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}
