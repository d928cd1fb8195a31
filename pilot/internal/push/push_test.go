package push

import (
	"context"
	"crypto/x509"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system", Authorizers: []authorizer.Provider{
	{Name: "opa", GRPC: true, Service: "shop/opa", Port: 9191, Timeout: time.Second}, {Name: "ward", GRPC: true, Service: "shop/ward", Port: 9191, Timeout: time.Second}}}

// testMesh is a registry, a store and a server, fed by hand, and one agent with the pods of its node.
type testMesh struct {
	t      *testing.T
	reg    *registry.Registry
	store  *Store
	server *Server
	clock  clock.Clock // of the proxies' streams

	mu    sync.Mutex
	agent *nodexds.Node // nil before somebody connects
}

// nodeName is where all pods are that are not said to be elsewhere.
const nodeName = "node-1"

func newMesh(t *testing.T) *testMesh {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	store := NewStore(settings, reg.Snapshot(), NewMetrics(prometheus.NewRegistry()), log)
	return &testMesh{t: t, reg: reg, store: store, clock: clock.RealClock{}, server: NewServer(store, Options{
		Certificate: nodexdstest.CertificateOf, MaxProxies: 1000, Recorder: &noted{}, Clock: clock.RealClock{}, Log: log})}
}

// node runs the agent of a node until the test ends.
func (m *testMesh) node(name string) *nodexds.Node {
	m.t.Helper()
	n := nodexds.New(clock.RealClock{}, "")
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx, nodexdstest.Dial(m.server, agentOn(m.t, name)), slog.New(slog.DiscardHandler))
	}()
	m.t.Cleanup(func() { cancel(); <-done })
	return n
}

func agentOn(t *testing.T, node string) *x509.Certificate {
	return nodexdstest.Certificate(t, "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent", spiffe.Pod{Name: "agent-" + node, UID: "u-" + node, Node: node})
}

func (m *testMesh) apply(events ...registry.Event) {
	m.t.Helper()
	changes, err := m.reg.Apply(events)
	if err != nil {
		m.t.Fatal(err)
	}
	m.store.Apply(m.reg.Snapshot(), changes)
}

func (m *testMesh) counts() (recomputes, marshals float64) {
	return testutil.ToFloat64(m.store.metrics.recomputes), testutil.ToFloat64(m.store.metrics.marshals)
}

func service(ns, name string, port uint32) registry.Event {
	id := ns + "/" + name
	return registry.Event{Kind: registry.Services, ID: id, Object: &registry.Service{
		ID: id, Namespace: ns, Name: name, ClusterIPs: []string{clusterIP(id)}, Selector: map[string]string{"app": name},
		Ports: []registry.ServicePort{{Name: "http", Number: port, Target: 8080, Protocol: protocol.HTTP}},
	}}
}

// clusterIP is an address of the service's own.
func clusterIP(id string) string {
	h := fnv.New32a()
	_, _ = io.WriteString(h, id)
	sum := h.Sum(nil)
	return fmt.Sprintf("10.%d.%d.%d", 96+sum[0]%16, sum[1], sum[2])
}

func slice(ns, name string, addresses ...string) registry.Event {
	id := ns + "/" + name
	s := &registry.Slice{ID: id, Namespace: ns, Name: name, ServiceID: id, Ports: []registry.SlicePort{{Name: "http", Number: 8080}}, Addresses: addresses}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, registry.Endpoint{Address: a, Ready: true})
	}
	return registry.Event{Kind: registry.Slices, ID: id, Object: s}
}

func pod(ns, app, name, ip string) registry.Event {
	id := ns + "/" + name
	return registry.Event{Kind: registry.Pods, ID: id, Object: &registry.Pod{
		ID: id, Namespace: ns, Name: name, UID: name, IPs: []string{ip}, Node: nodeName, ServiceAccount: app, Proxied: true, Labels: map[string]string{"app": app}}}
}

func deny(ns, name, app string) registry.Event {
	id := ns + "/" + name
	p := authz.Policy{Meta: authz.Meta{Namespace: ns, Name: name}, Action: authz.Deny, Selector: map[string]string{"app": app}, Rules: []authz.Rule{{}}}
	return registry.Event{Kind: registry.Policies, ID: id, Object: &registry.Policy{ID: id, Namespace: ns, Policy: p}}
}

// proxy is a client in process, which takes whatever it is sent and counts it.
type proxy struct {
	ctx    context.Context
	in     chan *discovery.DeltaDiscoveryRequest
	done   chan error
	cancel context.CancelFunc

	silent   bool // it answers nothing
	mu       sync.Mutex
	received map[string][]string // type → names, in the order of their coming
	removed  map[string][]string
	settled  *sync.Cond
}

func (p *proxy) Context() context.Context { return p.ctx }

func (p *proxy) Send(r *discovery.DeltaDiscoveryResponse) error {
	p.mu.Lock()
	for _, res := range r.GetResources() {
		p.received[short(r.GetTypeUrl())] = append(p.received[short(r.GetTypeUrl())], res.GetName())
	}
	p.removed[short(r.GetTypeUrl())] = append(p.removed[short(r.GetTypeUrl())], r.GetRemovedResources()...)
	p.settled.Broadcast()
	silent := p.silent
	p.mu.Unlock()
	if silent {
		return nil
	}
	go p.answer(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return nil
}

func (p *proxy) answer(r *discovery.DeltaDiscoveryRequest) {
	select {
	case p.in <- r:
	case <-p.ctx.Done():
	}
}

func (p *proxy) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r, ok := <-p.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

// take returns what came of a type since the last take, once at least n resources did.
func (p *proxy) take(t *testing.T, typ string, n int) []string {
	t.Helper()
	stop := time.AfterFunc(time.Minute, func() { p.cancel(); p.settled.Broadcast() })
	defer stop.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.received[typ]) < n {
		if p.ctx.Err() != nil {
			t.Fatalf("got %d resources of %s (%v), want %d", len(p.received[typ]), typ, p.received[typ], n)
		}
		p.settled.Wait()
	}
	out := p.received[typ]
	p.received[typ] = nil
	slices.Sort(out)
	return out
}

// connect has the proxy of a pod of the agent's node ask for types.
func (m *testMesh) connect(pod string, types ...string) *proxy {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	p := &proxy{ctx: ctx, cancel: cancel, in: make(chan *discovery.DeltaDiscoveryRequest), done: make(chan error, 1),
		received: map[string][]string{}, removed: map[string][]string{}}
	p.settled = sync.NewCond(&p.mu)
	go func() { p.done <- m.serve(pod, p) }()
	m.t.Cleanup(func() { cancel(); <-p.done })
	for _, url := range types {
		p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: url}
	}
	return p
}

// serve is what the agent does for the stream of a pod's proxy. The pod's UID is its name.
func (m *testMesh) serve(pod string, rpc deltaxds.RPC) error {
	_, uid, _ := strings.Cut(pod, "/")
	m.mu.Lock()
	if m.agent == nil {
		m.agent = m.node(nodeName)
	}
	m.agent.Add(uid, pod, "")
	m.mu.Unlock()
	source := m.agent.Proxy(uid, "sidecar~"+pod, "")
	stream := deltaxds.NewStream(source, m.clock)
	source.Begin(stream)
	err := stream.Serve(rpc, nil)
	source.End(err)
	return err
}

func account(ns, sa string) spiffe.ID {
	return spiffe.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

// TestCostFollowsWhatChangedAndWhoIsAffected is the scale Pilot is made for: each resource is made and marshalled once
// for all 200 proxies, and a change makes anew what depends on it and nothing else.
func TestCostFollowsWhatChangedAndWhoIsAffected(t *testing.T) {
	const services, proxies = 1000, 200
	m := newMesh(t)
	var events []registry.Event
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		ip := fmt.Sprintf("10.1.%d.%d", i/250, i%250)
		events = append(events, service("shop", name, 80), pod("shop", name, name+"-0", ip), slice("shop", name, ip))
	}
	m.apply(events...)
	var connected []*proxy
	for i := range proxies {
		name := fmt.Sprintf("s%d", i)
		p := m.connect("shop/"+name+"-0", deltaxds.ClusterType, deltaxds.ListenerType)
		connected = append(connected, p)
	}
	for _, p := range connected {
		p.take(t, "cds", services+4) // and four of every proxy
		p.take(t, "lds", services+4)
		endpoints := &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType}
		for i := range services {
			endpoints.ResourceNamesSubscribe = append(endpoints.ResourceNamesSubscribe, fmt.Sprintf("outbound|80||s%d.shop.svc.cluster.local", i))
		}
		p.in <- endpoints
		p.take(t, "eds", services)
		p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ExtensionConfigType, ResourceNamesSubscribe: append(translate.AuthorizationNames, translate.RevocationNames()...)}
		p.take(t, short(deltaxds.ExtensionConfigType), 14)
	}
	// Shared: clusters, endpoints and listeners of services, four clusters, three listeners, five filters of listeners (two of them in each family), three lists of revocations.
	// Own, of each proxy: a listener, two tables of routes, the eleven configurations of authorization.
	shared := services*3 + 4 + 3 + 7 + 3
	recomputed, marshalled := m.counts()
	if want := float64(shared + proxies*(1+2+11)); marshalled != want || recomputed != want {
		t.Fatalf("connecting %d proxies took %v recomputes and %v marshals, want %v of each", proxies, recomputed, marshalled, want)
	}

	m.apply(slice("shop", "s7", "10.1.0.7", "10.1.0.8"))
	for _, p := range connected {
		if got := p.take(t, "eds", 1); !slices.Equal(got, []string{"outbound|80||s7.shop.svc.cluster.local"}) {
			t.Fatalf("sent %v", got)
		}
	}
	m.expect(t, "one endpoint for all proxies", &recomputed, &marshalled, 1, 1)

	m.apply(deny("shop", "p", "s3"))
	if got := connected[3].take(t, "ecds", 3); !slices.Equal(got, []string{"authorization/http/deny", "authorization/open", "authorization/tcp/deny"}) {
		t.Fatalf("sent %v", got)
	}
	connected[3].take(t, "lds", 1)                                            // the first policy: new TCP connections wait for the verdict from now on
	m.expect(t, "a policy of one workload", &recomputed, &marshalled, 14, 14) // and the tables, as its first one
	m.apply(deny("shop", "q", "s3"))
	connected[3].take(t, "ecds", 2)
	m.expect(t, "another policy of the workload", &recomputed, &marshalled, 11, 11)
	for i, p := range connected {
		p.mu.Lock()
		if len(p.received["lds"])+len(p.received["cds"])+len(p.received["ecds"]) > 0 {
			t.Errorf("proxy %d was sent %v", i, p.received)
		}
		p.mu.Unlock()
	}

	web := service("shop", "s5", 80)
	web.Object.(*registry.Service).Ports = append(web.Object.(*registry.Service).Ports, registry.ServicePort{Name: "tcp", Number: 90, Target: 9090, Protocol: protocol.TCP})
	m.apply(web)
	for i, p := range connected {
		own := 0
		if i == 5 {
			own = 1
		}
		p.take(t, "cds", 1)
		p.take(t, "lds", 1+own)
		p.take(t, "ecds", own)
	}
	// Made anew to stay as they are: cluster, endpoints and listener of port 80. New: cluster, endpoints and
	// listener of port 90, for all. Of the workload: its listener, and its tables and authorization, which have the names of services.
	m.expect(t, "a service's second port", &recomputed, &marshalled, 20, 20)

	m.apply(revoke("one", "s7", "abc"))
	for _, p := range connected {
		if got := p.take(t, "ecds", 3); !slices.Equal(got, slices.Sorted(slices.Values(translate.RevocationNames()))) {
			t.Fatalf("sent %v", got)
		}
	}
	m.expect(t, "the first revoked certificate, whose filter all proxies have to ask from now on", &recomputed, &marshalled, 3+2*proxies, 3+2*proxies)
	m.apply(revoke("all", "s7", ""))
	for _, p := range connected {
		p.take(t, "ecds", 3)
		if got := p.take(t, "cds", 1); !slices.Equal(got, []string{"outbound|80||s7.shop.svc.cluster.local"}) {
			t.Fatalf("sent %v", got)
		}
	}
	m.expect(t, "a revoked identity, which serves a service", &recomputed, &marshalled, 4, 4)

	m.apply(pod("shop", "nobody", "unrelated-0", "10.9.9.9"))
	m.expect(t, "a pod of no service", &recomputed, &marshalled, 0, 0)
}

func revoke(name, account, serial string) registry.Event {
	id := "spiffe://cluster.local/ns/shop/sa/" + account
	return registry.Event{Kind: registry.Revocations, ID: name, Object: &registry.Revocation{ID: name,
		Revocation: revocation.Revocation{Name: name, Identity: id, Serial: serial}}}
}

func (m *testMesh) expect(t *testing.T, what string, recomputed, marshalled *float64, dr, dm float64) {
	t.Helper()
	r, n := m.counts()
	if r-*recomputed != dr || n-*marshalled != dm {
		t.Errorf("%s: %v recomputes and %v marshals, want %v and %v", what, r-*recomputed, n-*marshalled, dr, dm)
	}
	*recomputed, *marshalled = r, n
}

func TestProxyOfAPodNotSeenYetWaitsForIt(t *testing.T) {
	m := newMesh(t)
	p := m.connect("shop/a-0", deltaxds.ListenerType)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"))
	p.take(t, "lds", 4)
}

func TestPodWhoseLabelsChangeGetsThePoliciesOfItsNewLabels(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"), deny("shop", "p", "b"))
	p := m.connect("shop/a-0", deltaxds.ListenerType)
	p.take(t, "lds", 4)
	moved := pod("shop", "a", "a-0", "10.1.0.1")
	moved.Object.(*registry.Pod).Labels = map[string]string{"app": "b"}
	m.apply(moved)
	if got := p.take(t, "lds", 1); !slices.Equal(got, []string{"virtualInbound"}) {
		t.Fatalf("sent %v", got)
	}
}
