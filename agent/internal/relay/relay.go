package relay

import (
	"context"
	"errors"
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
	Metrics     *Metrics
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
	lost    map[string]lag // of a proxy that has stalled, by type, until another stream begins
	stepped chan struct{}  // capacity one: a stream of Envoy has moved, which may be the answer that Pilot waits for
	anew    chan struct{}  // capacity one: the stream to Pilot must begin anew
}

// lag is what a proxy does not have of a type as it is here: names with the reason for which it refuses them, or with
// none if they are unsent or unanswered; or all.
type lag struct {
	names map[string]string
	all   bool
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
		streams: map[*deltaxds.Stream]bool{}, stepped: make(chan struct{}, 1), anew: make(chan struct{}, 1),
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
	stream.Doubt(deltaxds.EndpointType)
	r.connect(stream, first.GetNode())
	ctx, cancel := context.WithCancel(rpc.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.secrets.Follow(ctx, stream.Dirty) })
	defer wg.Wait()
	defer cancel()
	err = stream.Serve(rpc, first)
	r.disconnect(stream, err)
	var stalled *deltaxds.Stalled
	if errors.As(err, &stalled) {
		r.config.Metrics.stalled.Inc()
		r.log.Error("the proxy does not take its configuration; its stream begins anew", "type", stalled.Type, "resources", deltaxds.Quoted(stalled.Names),
			"for", stalled.For.String(), "waitsFor", stalled.Waits)
		return status.Error(codes.Aborted, err.Error())
	}
	return err
}

func (r *Relay) connect(stream *deltaxds.Stream, node *core.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node, r.lost = node, nil
	r.streams[stream] = true
}

// disconnect forgets a stream. A proxy that has stalled is still there, with what it had.
func (r *Relay) disconnect(stream *deltaxds.Stream, err error) {
	var lost map[string]lag
	var stalled *deltaxds.Stalled
	if errors.As(err, &stalled) {
		lost = map[string]lag{}
		for _, url := range r.cache.asked() {
			names, asked := stream.Unsettled(url)
			lost[url] = lag{names, !asked && r.cache.everything(url)}
		}
	}
	r.mu.Lock()
	delete(r.streams, stream)
	r.lost = lost
	r.mu.Unlock()
	if lost != nil {
		signal(r.anew) // Pilot may have been told that the proxy has what it has not
	}
	signal(r.stepped)
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

// Stepped implements deltaxds.Follower.
func (s source) Stepped() { signal(s.stepped) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
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

// behind says what the connected Envoy, or each of several, does not have of a type. With none connected the cache is what
// takes it, unless the last one has stalled.
func (r *Relay) behind(typeURL string) lag {
	streams := r.connected()
	if len(streams) == 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.lost[typeURL]
	}
	out := lag{names: map[string]string{}}
	for _, s := range streams {
		names, asked := s.Unsettled(typeURL)
		// Envoy asks for all clusters and all listeners sooner or later; until then it has not taken what has come meanwhile.
		out.all = out.all || (!asked && r.cache.everything(typeURL))
		for name, reason := range names {
			if before, ok := out.names[name]; !ok || before != "" {
				out.names[name] = reason
			}
		}
	}
	return out
}

// tidy drops what an earlier stream has asked for and Envoy does not need any more. It is kept until Envoy has come to all
// that it asks for, since one that starts while Pilot is away is served from it.
func (r *Relay) tidy() {
	streams := r.connected()
	if len(streams) != 1 {
		return
	}
	status := streams[0].Status()
	for _, url := range []string{deltaxds.ClusterType, deltaxds.ListenerType} {
		if st, asked := status[url]; !asked || st.Pending {
			return
		}
	}
	for _, url := range r.cache.asked() {
		r.cache.keep(url, streams[0].Names(url))
	}
}

func (r *Relay) lastNode() *core.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}
