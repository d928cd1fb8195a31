package push

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}

// mesh is a registry, a store and a server, fed by hand.
type testMesh struct {
	t      *testing.T
	reg    *registry.Registry
	store  *Store
	server *Server
}

type peerKey struct{}

func newMesh(t *testing.T) *testMesh {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	store := NewStore(settings, reg.Snapshot(), NewMetrics(prometheus.NewRegistry()), log)
	identify := func(ctx context.Context) (spiffe.ID, error) {
		id, ok := ctx.Value(peerKey{}).(spiffe.ID)
		if !ok {
			return id, fmt.Errorf("no certificate")
		}
		return id, nil
	}
	return &testMesh{t, reg, store, NewServer(store, Options{Identify: identify, MaxProxies: 1000, Recorder: &noted{}, Clock: clock.RealClock{}, Log: log})}
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
		ID: id, Namespace: ns, Name: name, UID: name, IP: ip, ServiceAccount: app, Proxied: true, Labels: map[string]string{"app": app}}}
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
	p.mu.Unlock()
	if p.silent {
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

func (p *proxy) SetHeader(metadata.MD) error  { return nil }
func (p *proxy) SendHeader(metadata.MD) error { return nil }
func (p *proxy) SetTrailer(metadata.MD)       {}
func (p *proxy) SendMsg(m any) error          { return p.Send(m.(*deltaxds.Response).DeltaDiscoveryResponse) }
func (p *proxy) RecvMsg(any) error            { return nil }

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

func (m *testMesh) connect(node string, id spiffe.ID, types ...string) *proxy {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.WithValue(m.t.Context(), peerKey{}, id))
	p := &proxy{ctx: ctx, cancel: cancel, in: make(chan *discovery.DeltaDiscoveryRequest), done: make(chan error, 1),
		received: map[string][]string{}, removed: map[string][]string{}}
	p.settled = sync.NewCond(&p.mu)
	go func() { p.done <- m.server.DeltaAggregatedResources(p) }()
	m.t.Cleanup(func() { cancel(); <-p.done })
	for i, url := range types {
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: url}
		if i == 0 {
			req = first(node, url)
		}
		p.in <- req
	}
	return p
}

func first(node, typeURL string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, Node: &core.Node{Id: node}}
}

func account(ns, sa string) spiffe.ID {
	return spiffe.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

func node(ip, name, ns string) string {
	return fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", ip, name, ns, ns)
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
		p := m.connect(node(fmt.Sprintf("10.1.%d.%d", i/250, i%250), name+"-0", "shop"), account("shop", name), deltaxds.ClusterType, deltaxds.ListenerType)
		connected = append(connected, p)
	}
	for _, p := range connected {
		p.take(t, "cds", services+4) // and four of every proxy
		p.take(t, "lds", services+5)
		endpoints := &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType}
		for i := range services {
			endpoints.ResourceNamesSubscribe = append(endpoints.ResourceNamesSubscribe, fmt.Sprintf("outbound|80||s%d.shop.svc.cluster.local", i))
		}
		p.in <- endpoints
		p.take(t, "eds", services)
		p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ExtensionConfigType, ResourceNamesSubscribe: append(translate.AuthorizationNames(), translate.RevocationNames()...)}
		p.take(t, short(deltaxds.ExtensionConfigType), 8)
	}
	// Shared: clusters, endpoints and listeners of services, four clusters, three listeners, two lists of revocations.
	// Own, of each proxy: two listeners, the six configurations of authorization.
	shared := services*3 + 4 + 3 + 2
	recomputed, marshalled := m.counts()
	if want := float64(shared + proxies*(2+6)); marshalled != want || recomputed != want {
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
	if got := connected[3].take(t, "ecds", 2); !slices.Equal(got, []string{"authorization/http/deny", "authorization/tcp/deny"}) {
		t.Fatalf("sent %v", got)
	}
	connected[3].take(t, "lds", 1) // the first policy: new TCP connections wait for the verdict from now on
	m.expect(t, "a policy of one workload", &recomputed, &marshalled, 7, 7)
	m.apply(deny("shop", "q", "s3"))
	connected[3].take(t, "ecds", 2)
	m.expect(t, "another policy of the workload", &recomputed, &marshalled, 6, 6)
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
		p.take(t, "ecds", 2*own)
	}
	// Made anew to stay as they are: cluster, endpoints and listener of port 80. New: cluster and listener of
	// port 90, for all. Of the workload: its listener, and its authorization, which has the names of services.
	m.expect(t, "a service's second port", &recomputed, &marshalled, 12, 12)

	m.apply(revoke("one", "s7", "abc"))
	for _, p := range connected {
		if got := p.take(t, "ecds", 2); !slices.Equal(got, translate.RevocationNames()) {
			t.Fatalf("sent %v", got)
		}
	}
	m.expect(t, "a revoked certificate, for all proxies", &recomputed, &marshalled, 2, 2)
	m.apply(revoke("all", "s7", ""))
	for _, p := range connected {
		p.take(t, "ecds", 2)
		if got := p.take(t, "cds", 1); !slices.Equal(got, []string{"outbound|80||s7.shop.svc.cluster.local"}) {
			t.Fatalf("sent %v", got)
		}
	}
	m.expect(t, "a revoked identity, which serves a service", &recomputed, &marshalled, 3, 3)

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

func TestProxyIsRefusedUnlessItIsThePodItNames(t *testing.T) {
	for _, c := range []struct {
		name, node string
		id         any
		want       codes.Code
	}{
		{"no certificate", node("10.1.0.1", "a-0", "shop"), nil, codes.Unauthenticated},
		{"another account", node("10.1.0.1", "a-0", "shop"), account("shop", "b"), codes.PermissionDenied},
		{"another namespace", node("10.1.0.1", "a-0", "shop"), account("other", "a"), codes.PermissionDenied},
		{"another trust domain", node("10.1.0.1", "a-0", "shop"), spiffe.ID{TrustDomain: "evil", Namespace: "shop", ServiceAccount: "a"}, codes.PermissionDenied},
		{"another address", node("10.1.0.2", "a-0", "shop"), account("shop", "a"), codes.PermissionDenied},
		{"no node", "", account("shop", "a"), codes.InvalidArgument},
		{"not a sidecar", "router~10.1.0.1~a-0.shop~shop.svc", account("shop", "a"), codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t)
			m.apply(pod("shop", "a", "a-0", "10.1.0.1"))
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), peerKey{}, c.id))
			defer cancel()
			p := &proxy{ctx: ctx, cancel: cancel, in: make(chan *discovery.DeltaDiscoveryRequest, 1)}
			p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType, Node: &core.Node{Id: c.node}}
			if err := m.server.DeltaAggregatedResources(p); status.Code(err) != c.want {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestProxyOfAPodNotSeenYetWaitsForIt(t *testing.T) {
	m := newMesh(t)
	p := m.connect(node("10.1.0.1", "a-0", "shop"), account("shop", "a"), deltaxds.ListenerType)
	m.apply(pod("shop", "a", "a-0", ""))
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"))
	p.take(t, "lds", 4)
}

func TestPodWhoseLabelsChangeGetsThePoliciesOfItsNewLabels(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"), deny("shop", "p", "b"))
	p := m.connect(node("10.1.0.1", "a-0", "shop"), account("shop", "a"), deltaxds.ListenerType)
	p.take(t, "lds", 4)
	moved := pod("shop", "a", "a-0", "10.1.0.1")
	moved.Object.(*registry.Pod).Labels = map[string]string{"app": "b"}
	m.apply(moved)
	if got := p.take(t, "lds", 1); !slices.Equal(got, []string{"virtualInbound"}) {
		t.Fatalf("sent %v", got)
	}
}

func TestNamesakePodWithAnotherAccountEndsTheStream(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"))
	p := m.connect(node("10.1.0.1", "a-0", "shop"), account("shop", "a"), deltaxds.ListenerType)
	p.take(t, "lds", 4)
	other := pod("shop", "a", "a-0", "10.1.0.1")
	other.Object.(*registry.Pod).UID, other.Object.(*registry.Pod).ServiceAccount = "new", "b"
	m.apply(other)
	select {
	case err := <-p.done:
		p.done <- err
	case <-time.After(20 * time.Second):
		t.Fatal("the stream goes on")
	}
}
