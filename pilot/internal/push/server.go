package push

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Limits of the discovery service.
const (
	podWait      = 10 * time.Second // for a pod that the informers have not shown yet
	firstRequest = 15 * time.Second // for a client to say who it is
)

// Server is the aggregated discovery service.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	store   *Store
	options Options
	events  *rate.Limiter
	log     *slog.Logger
}

// Options are what a server needs beside its store.
type Options struct {
	Identify   func(context.Context) (spiffe.ID, error) // who a call's client is, by its certificate
	MaxProxies int
	Recorder   Recorder // of Events on pods
	Clock      clock.Clock
	Log        *slog.Logger
}

// NewServer returns a server of the store.
func NewServer(store *Store, o Options) *Server {
	return &Server{store: store, options: o, events: rate.NewLimiter(eventsPerSecond, eventsAtOnce), log: o.Log}
}

type adsStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// DeltaAggregatedResources serves one proxy.
func (s *Server) DeltaAggregatedResources(rpc adsStream) error {
	id, err := s.options.Identify(rpc.Context())
	if err != nil {
		s.store.metrics.refused.WithLabelValues("unauthenticated").Inc()
		return status.Error(codes.Unauthenticated, err.Error())
	}
	first, err := firstOf(rpc)
	if err != nil {
		return err
	}
	node := first.GetNode().GetId()
	pod, err := s.authorize(rpc.Context(), id, node)
	if err != nil {
		s.store.metrics.refused.WithLabelValues("unauthorized").Inc()
		s.log.Warn("refused a proxy", "node", node, "identity", id.String(), "error", err)
		return err
	}
	return s.serve(rpc, first, pod, id, node)
}

func (s *Server) serve(rpc adsStream, first *discovery.DeltaDiscoveryRequest, pod *registry.Pod, id spiffe.ID, node string) error {
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	c := &client{store: s.store, node: node, pod: pod.ID, uid: pod.UID, identity: id, delivery: pod.Delivery, since: time.Now(), end: cancel}
	c.stream = deltaxds.NewStream(c, s.options.Clock)
	if !s.store.admit(c, pod, s.options.MaxProxies) {
		s.store.metrics.refused.WithLabelValues("full").Inc()
		return status.Errorf(codes.ResourceExhausted, "%d proxies are connected", s.options.MaxProxies)
	}
	defer s.store.remove(c)
	s.log.Info("proxy connected", "node", node, "identity", id.String())
	err := c.stream.Serve(&observed{rpc, ctx, c}, first)
	var stalled *deltaxds.Stalled
	if errors.As(err, &stalled) {
		s.stalled(c, pod, stalled)
		err = status.Error(codes.Aborted, stalled.Error())
	}
	s.log.Info("proxy left", "node", node, "error", err)
	return err
}

// admit adds the client if there is room.
func (s *Store) admit(c *client, pod *registry.Pod, limit int) bool {
	s.mu.Lock()
	full := len(s.clients) >= limit
	s.mu.Unlock()
	if full {
		return false
	}
	s.add(c, pod)
	return true
}

// firstOf waits for the request in which the client says who it is, and not for ever.
func firstOf(rpc deltaxds.RPC) (*discovery.DeltaDiscoveryRequest, error) {
	type result struct {
		req *discovery.DeltaDiscoveryRequest
		err error
	}
	got := make(chan result, 1)
	go func() { // ends with the stream, which gRPC ends when the call returns
		req, err := rpc.Recv()
		got <- result{req, err}
	}()
	timer := time.NewTimer(firstRequest)
	defer timer.Stop()
	select {
	case r := <-got:
		if errors.Is(r.err, io.EOF) {
			return nil, status.Error(codes.InvalidArgument, "the client asked for nothing")
		}
		return r.req, r.err
	case <-timer.C:
		return nil, status.Error(codes.DeadlineExceeded, "the client did not say who it is")
	}
}

// authorize finds the pod that a node ID names, which must be the one whose identity the client has proved.
func (s *Server) authorize(ctx context.Context, id spiffe.ID, node string) (*registry.Pod, error) {
	ip, name, err := parseNode(node)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !slices.Contains(s.store.settings.TrustDomains(), id.TrustDomain) {
		return nil, status.Errorf(codes.PermissionDenied, "%s is of another trust domain", id)
	}
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	for {
		pod, changed := s.store.podNow(name)
		if pod != nil && pod.IP != "" {
			switch {
			case pod.Namespace != id.Namespace || pod.ServiceAccount != id.ServiceAccount:
				return nil, status.Errorf(codes.PermissionDenied, "pod %s runs as %s, not as %s", name, pod.ServiceAccount, id)
			case pod.IP != ip:
				return nil, status.Errorf(codes.PermissionDenied, "pod %s has address %s, not %s", name, pod.IP, ip)
			}
			return pod, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.Errorf(codes.PermissionDenied, "no pod %s is known", name)
		}
	}
}

// podNow returns a pod and a channel that closes when pods change.
func (s *Store) podNow(id string) (*registry.Pod, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.catalog.Snapshot().Pod(id), s.arrived
}

// observed is a stream whose sending is measured and that the store can end.
type observed struct {
	adsStream
	ctx    context.Context
	client *client
}

func (o *observed) Context() context.Context { return o.ctx }

// SendShared implements deltaxds.Sharing.
func (o *observed) SendShared(r *deltaxds.Response) error {
	m := o.client.store.metrics
	m.pushes.WithLabelValues(short(r.GetTypeUrl())).Inc()
	m.pushed.WithLabelValues(short(r.GetTypeUrl())).Add(float64(len(r.GetResources())))
	err := o.SendMsg(r)
	if d, ok := o.client.sent(); ok {
		m.convergence.Observe(d.Seconds())
	}
	return err
}
