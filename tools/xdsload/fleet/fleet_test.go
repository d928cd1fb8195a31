package fleet

import (
	"context"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// agent serves what it has to whoever asks.
type agent struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	mu      sync.Mutex
	have    map[string]map[string]*deltaxds.Resource
	streams map[*deltaxds.Stream]bool
}

func (p *agent) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := deltaxds.NewStream(p, clock.RealClock{})
	p.mu.Lock()
	p.streams[s] = true
	p.mu.Unlock()
	return s.Serve(rpc, nil)
}

func (p *agent) Resource(url, name string) (*deltaxds.Resource, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have[url][name], true
}

func (p *agent) Wildcard(url string) ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.have[url])), true
}

func (p *agent) Subscribed(string, []string, []string) {}

func (p *agent) set(t *testing.T, url, name string, msg proto.Message) {
	t.Helper()
	r, err := deltaxds.NewResource(name, msg)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	if p.have[url] == nil {
		p.have[url] = map[string]*deltaxds.Resource{}
	}
	p.have[url][name] = r
	streams := slices.Collect(maps.Keys(p.streams))
	p.mu.Unlock()
	for _, s := range streams {
		s.Dirty(url, name)
	}
}

func packed(t *testing.T, msg proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(msg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func endpointsAt(address string) *endpoint.ClusterLoadAssignment {
	return &endpoint.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: []*endpoint.LbEndpoint{{
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{Address: &core.Address_SocketAddress{
			SocketAddress: &core.SocketAddress{Address: address, PortSpecifier: &core.SocketAddress_PortValue{PortValue: 1}}}}}}}}}}}
}

// serve starts an agent with one cluster, and one listener that needs a route and a filter from elsewhere. It returns its socket.
func serve(t *testing.T) (*agent, string) {
	t.Helper()
	p := &agent{have: map[string]map[string]*deltaxds.Resource{}, streams: map[*deltaxds.Stream]bool{}}
	p.set(t, deltaxds.ClusterType, "c", &cluster.Cluster{Name: "c", ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS}})
	p.set(t, deltaxds.EndpointType, "c", endpointsAt("10.0.0.1"))
	manager := &hcm.HttpConnectionManager{
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: "80"}},
		HttpFilters:    []*hcm.HttpFilter{{Name: "authz", ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: &core.ExtensionConfigSource{}}}},
	}
	p.set(t, deltaxds.ListenerType, "l", &listener.Listener{Name: "l", FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
		Name: "http", ConfigType: &listener.Filter_TypedConfig{TypedConfig: packed(t, manager)}}}}}})
	p.set(t, deltaxds.RouteType, "80", &route.RouteConfiguration{Name: "80"})
	p.set(t, deltaxds.ExtensionConfigType, "authz", &core.TypedExtensionConfig{Name: "authz"})

	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, p)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return p, socket
}

func TestProxiesAskForEverythingOnceAndHearOfChanges(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, socket := serve(t)
	f := New([]Member{{Pod: "a", Socket: socket}, {Pod: "b", Socket: socket}, {Pod: "c", Socket: socket}})
	defer f.Disconnect()
	if _, err := f.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	for name, share := range f.Traffic().Types {
		if share.Resources != 3 {
			t.Errorf("%d resources of %s, want one for each proxy", share.Resources, name)
		}
	}

	w := f.Expect("10.0.0.2", func(m Member) bool { return m.Pod != "c" })
	p.set(t, deltaxds.EndpointType, "c", endpointsAt("10.0.0.2"))
	if _, err := w.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Quiet(ctx, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if w.Affected() != 2 || w.Strays() != 1 {
		t.Errorf("affected %d, strays %d, want 2 and 1", w.Affected(), w.Strays())
	}

	f.Disconnect()
	before := f.Traffic()
	if _, err := f.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Quiet(ctx, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for name, share := range f.Traffic().Since(before).Types {
		// An agent does not believe that a proxy has the versions that it names: it sends everything again, and once.
		if share.Resources != 3 {
			t.Errorf("%d resources of %s were sent to proxies that connected anew, want one for each", share.Resources, name)
		}
	}
}
