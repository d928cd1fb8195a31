package featuretest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
)

// proxy is one pod's Envoy: the model of deltaxdstest, which asks for endpoints, routes and extension configurations by the
// names that it finds in the clusters and listeners it is sent. Its streams are served by the agent of its node, without a network.
type proxy struct {
	pod  string // namespace/name
	uid  string // of the pod that it began in
	wire *wire

	left bool // it has ended its stream itself

	mu     sync.Mutex
	envoy  *deltaxdstest.Envoy
	stream *stream
}

func newProxy(w *wire, pod *registry.Pod) *proxy {
	return &proxy{pod: pod.ID, uid: pod.UID, wire: w, envoy: deltaxdstest.NewEnvoyReading(w.facts)}
}

// connect begins a stream. The proxy keeps what it has, and says so.
func (p *proxy) connect(t *testing.T, to *pilot) {
	t.Helper()
	pod := to.pod(p.pod)
	agent := to.node(t, pod.Node)
	agent.Add(p.uid, p.pod, pod.Namespace+"/"+pod.ServiceAccount)
	ctx, cancel := context.WithCancel(t.Context())
	s := &stream{ctx: ctx, cancel: cancel, proxy: p, up: make(chan *discovery.DeltaDiscoveryRequest, unheard), ended: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream, p.left = s, false
	p.envoy.Reconnect()
	s.speak()
	go func() { // ends when the stream does: by its context, or because the agent ends it
		defer close(s.ended)
		s.err = serve(agent.Node, pod, s)
		cancel() // gRPC does so, and the agent's reader waits for it
	}()
}

// serve is what the agent does for the stream of a pod's proxy.
func serve(agent *nodexds.Node, pod *registry.Pod, rpc deltaxds.RPC) error {
	source := agent.Proxy(pod.UID, nodeID(pod), catalog.AsInjected(compile.ClassOf(pod)).String())
	stream := deltaxds.NewStream(source, clock.RealClock{})
	source.Begin(stream)
	err := stream.Serve(rpc, nil)
	source.End(err)
	return err
}

func nodeID(p *registry.Pod) string {
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", p.IPs[0], p.Name, p.Namespace, p.Namespace)
}

// disconnect ends the stream, and waits until the agent has noticed.
func (p *proxy) disconnect() {
	p.left = true
	p.stream.cancel()
	<-p.stream.ended
}

// connected reports whether the stream goes on, and with what it has ended otherwise.
func (p *proxy) connected() (bool, error) {
	select {
	case <-p.stream.ended:
		return false, p.stream.err
	default:
		return true, nil
	}
}

// holdings are the names of resources, with their type before them, and their versions.
type holdings map[string]string

var prefixes = map[string]string{
	deltaxds.ClusterType: "cluster/", deltaxds.EndpointType: "endpoints/", deltaxds.ListenerType: "listener/", deltaxds.RouteType: "route/",
	deltaxds.SecretType: "secret/", deltaxds.ExtensionConfigType: "", // whose names say what they are
}

// holds returns what the proxy has by the words of its streams, and what of that it cannot use yet.
func (p *proxy) holds() (all holdings, warming []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all = holdings{}
	for _, url := range deltaxdstest.Types {
		for name, version := range p.envoy.Has(url) {
			all[prefixes[url]+name] = version
		}
	}
	return all, p.envoy.Warming()
}

// unheard is more than a proxy can have said and the agent not heard.
const unheard = 1000

// stream is the agent's side of a call.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	proxy  *proxy
	up     chan *discovery.DeltaDiscoveryRequest
	ended  chan struct{}
	err    error // with which it ended
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Send(r *discovery.DeltaDiscoveryResponse) error {
	s.proxy.wire.see(r)
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	if s.proxy.stream != s {
		return context.Canceled
	}
	s.proxy.envoy.Take(r)
	s.speak()
	return nil
}

// speak says all that the proxy has to say. It is called with the proxy's lock held.
func (s *stream) speak() {
	for ready := s.proxy.envoy.Ready(); len(ready) > 0; ready = s.proxy.envoy.Ready() {
		select {
		case s.up <- s.proxy.envoy.Request(ready[0]):
		default:
			panic("the agent does not listen")
		}
	}
}

func (s *stream) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r := <-s.up:
		return r, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// wire remembers all that was ever sent, of all Pilots of a test, so that a version can be read. One version of a resource is
// one content: of a version that it has, a proxy is sent nothing again.
type wire struct {
	mu        sync.Mutex
	bodies    map[string]*anypb.Any // by identity and version
	known     map[string]deltaxdstest.Facts
	ambiguous []string // versions that were sent with two contents
}

func newWire() *wire {
	return &wire{bodies: map[string]*anypb.Any{}, known: map[string]deltaxdstest.Facts{}}
}

func (w *wire) see(r *discovery.DeltaDiscoveryResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, res := range r.GetResources() {
		key := prefixes[r.GetTypeUrl()] + res.GetName() + "@" + res.GetVersion()
		known := w.bodies[key]
		if known == nil {
			w.bodies[key] = res.GetResource()
			continue
		}
		if known.GetTypeUrl() != res.GetResource().GetTypeUrl() || !slices.Equal(known.GetValue(), res.GetResource().GetValue()) {
			w.ambiguous = append(w.ambiguous, key)
		}
	}
}

// body returns the content of a resource of holdings.
func (w *wire) body(identity, version string) *anypb.Any {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bodies[identity+"@"+version]
}

// facts finds what Envoy would ask for when it is sent a resource.
func (w *wire) facts(r *discovery.Resource) deltaxdstest.Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := r.GetResource().GetTypeUrl() + r.GetName() + "@" + r.GetVersion()
	if f, ok := w.known[key]; ok {
		return f
	}
	msg, err := r.GetResource().UnmarshalNew()
	if err != nil {
		panic(fmt.Sprintf("resource %s: %v", r.GetName(), err))
	}
	var f deltaxdstest.Facts
	switch m := msg.(type) {
	case *cluster.Cluster:
		f.Complete = m.GetType() != cluster.Cluster_EDS
	case *listener.Listener:
		f.Filters, f.Routes = discovered(m)
	}
	w.known[key] = f
	return f
}

// discovered lists what filters of a listener are to be asked for by name: their configurations, or their routes.
func discovered(l *listener.Listener) (filters, routes []string) {
	configs, tables := map[string]bool{}, map[string]bool{}
	for _, f := range filtersOf(l) {
		if f.GetConfigDiscovery() != nil {
			configs[f.GetName()] = true
		}
	}
	for _, m := range managersOf(l, nil) {
		if rds := m.GetRds(); rds != nil {
			tables[rds.GetRouteConfigName()] = true
		}
		for _, f := range m.GetHttpFilters() {
			if f.GetConfigDiscovery() != nil {
				configs[f.GetName()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(configs)), slices.Sorted(maps.Keys(tables))
}

// inlineTables are the routes that a listener brings along, given the configurations that its filters are to have.
func inlineTables(l *listener.Listener, configs map[string]*anypb.Any) []*route.RouteConfiguration {
	var out []*route.RouteConfiguration
	for _, m := range managersOf(l, configs) {
		if table := m.GetRouteConfig(); table != nil {
			out = append(out, table)
		}
	}
	return out
}

func filtersOf(l *listener.Listener) []*listener.Filter {
	var out []*listener.Filter
	for _, chain := range append(slices.Clip(l.GetFilterChains()), l.GetDefaultFilterChain()) {
		out = append(out, chain.GetFilters()...)
	}
	return out
}

func managersOf(l *listener.Listener, configs map[string]*anypb.Any) []*hcm.HttpConnectionManager {
	var out []*hcm.HttpConnectionManager
	for _, f := range filtersOf(l) {
		config, m := f.GetTypedConfig(), &hcm.HttpConnectionManager{}
		if f.GetConfigDiscovery() != nil {
			config = configs[f.GetName()]
		}
		if !config.MessageIs(m) {
			continue
		}
		if err := config.UnmarshalTo(m); err != nil {
			panic(fmt.Sprintf("listener %s: %v", l.GetName(), err))
		}
		out = append(out, m)
	}
	return out
}
