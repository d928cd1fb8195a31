package fleet

import (
	"context"
	"net"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
)

// pilot has one agent.
type pilot struct{ *nodexdstest.Pilot }

func (p pilot) set(t *testing.T, url, name string, msg proto.Message) {
	t.Helper()
	r, err := deltaxds.NewResource(name, msg)
	if err != nil {
		t.Fatal(err)
	}
	p.Set(url, r)
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

// serve starts a Pilot with one cluster, and one listener that needs a route and a filter from elsewhere.
func serve(t *testing.T) (pilot, Dialer) {
	t.Helper()
	p := pilot{nodexdstest.NewPilot()}
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

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(deltaxds.Codec()))
	nodev1.RegisterNodeConfigurationServer(srv, p)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return p, func(_ string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
		return grpc.NewClient(l.Addr().String(), append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	}
}

func TestProxiesAskForEverythingOnceAndHearOfChanges(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, dial := serve(t)
	f := New([]Member{{Pod: "a", UID: "a"}, {Pod: "b", UID: "b"}, {Pod: "c", UID: "c"}}, dial)
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

	if n := p.Sent(); n != 6 {
		t.Errorf("%d resources were sent to the agent, want each once, and one changed", n)
	}

	f.Disconnect()
	before := f.Traffic()
	if _, err := f.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Quiet(ctx, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	// Endpoints are sent again to an Envoy that reconnects (see deltaxds), by its agent.
	if again := f.Traffic().Since(before); again.Resources != 3 || p.Sent() != 0 {
		t.Errorf("%d resources were sent again to proxies, want the endpoints of each, and %d to their agent", again.Resources, p.Sent())
	}
}
