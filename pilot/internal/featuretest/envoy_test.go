package featuretest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	names "github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// The real Envoy takes all that Pilot has for it in each world, and asks for what the model of it asks for: clusters and their
// endpoints, listeners with their routes, and the configurations that filters of listeners are to have.
func TestEnvoyTakesEveryWorld(t *testing.T) {
	for _, g := range goldens(t) {
		if !t.Run(g.name, g.loads) {
			return // what one Envoy waits for in vain, the next would, too, as long
		}
	}
}

func (g golden) loads(t *testing.T) {
	events := g.events(t)
	model, w := received(t, events)
	workloads := []string{g.show.Workload}
	if g.show.Holders {
		workloads = slices.Sorted(maps.Keys(model))
	}
	p := newPilot(t, events)
	for _, pod := range workloads {
		at, want := startEnvoy(t, p, pod), expected(t, model[pod], w)
		var got loaded
		var refused []string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			got, refused = dump(t, at, want)
			refused = append(refused, refusals(p)...)
			if len(refused) > 0 || maps.Equal(got, want) {
				break
			}
		}
		if len(refused) > 0 {
			t.Errorf("the Envoy of %s refuses %s", pod, strings.Join(refused, "\n"))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("the Envoy of %s has not what Pilot has for it (-Pilot +Envoy):\n%s", pod, d)
		}
	}
}

// refusals are what Pilot has heard of them.
func refusals(p *pilot) (out []string) {
	for _, proxy := range p.store.Proxies() {
		for kind, status := range proxy.Types {
			if status.Nacked > 0 || status.Error != "" {
				out = append(out, fmt.Sprintf("something of %s: %s", kind, status.Error))
			}
		}
	}
	return out
}

// loaded is the configuration of an Envoy: resources with their versions, and endpoints with their addresses, as their version
// is not told. The routes that listeners bring along are one entry, which has those of a shared connection manager once for each listener.
type loaded map[string]string

const inlineRoutes = "inline routes"

// expected is what an Envoy has that has taken all of a proxy's holdings.
func expected(t *testing.T, all holdings, w *wire) loaded {
	t.Helper()
	out := loaded{}
	var listeners []*listener.Listener
	configs := map[string]*anypb.Any{} // that filters are to have
	for name, version := range all {
		msg, err := w.body(name, version).UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = version
		switch m := msg.(type) {
		case *endpoint.ClusterLoadAssignment:
			out[name] = addressesOf(m)
		case *listener.Listener:
			listeners = append(listeners, m)
		case *core.TypedExtensionConfig:
			configs[m.GetName()] = m.GetTypedConfig()
		}
	}
	var tables []string
	for _, l := range listeners {
		for _, table := range inlineTables(l, configs) {
			tables = append(tables, describe(table))
		}
	}
	slices.Sort(tables)
	out[inlineRoutes] = strings.Join(tables, "\n")
	return out
}

func addressesOf(m *endpoint.ClusterLoadAssignment) string {
	var out []string
	for _, locality := range m.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			plain := e.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"] != nil
			out = append(out, fmt.Sprintf("%s:%d, without TLS: %v", a.GetAddress(), a.GetPortValue(), plain))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func describe(table *route.RouteConfiguration) string {
	n := 0
	for _, h := range table.GetVirtualHosts() {
		n += len(h.GetRoutes())
	}
	return fmt.Sprintf("%s: %d virtual hosts, %d routes", table.GetName(), len(table.GetVirtualHosts()), n)
}

// dump asks an Envoy what it has, and what it has refused. What a cluster brings along has the form of endpoints, too; of
// these, those are told that are wanted.
func dump(t *testing.T, at uint32, want loaded) (got loaded, refused []string) {
	t.Helper()
	got = loaded{}
	note := func(prefix, version string, body *anypb.Any, failure *admin.UpdateFailureState) {
		t.Helper()
		if failure != nil {
			refused = append(refused, prefix+": "+failure.GetDetails())
		}
		if body == nil {
			return
		}
		msg, err := body.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := msg.(*endpoint.ClusterLoadAssignment); ok {
			if name := prefix + e.GetClusterName(); hasKey(want, name) {
				got[name] = addressesOf(e)
			}
			return
		}
		got[prefix+msg.(interface{ GetName() string }).GetName()] = version
	}
	var tables []string
	for _, part := range configOf(t, at) {
		switch m := part.(type) {
		case *admin.ClustersConfigDump:
			for _, c := range m.GetDynamicActiveClusters() {
				note("cluster/", c.GetVersionInfo(), c.GetCluster(), c.GetErrorState())
			}
			for _, c := range m.GetDynamicWarmingClusters() {
				note("warming cluster/", c.GetVersionInfo(), c.GetCluster(), c.GetErrorState())
			}
		case *admin.ListenersConfigDump:
			for _, l := range m.GetDynamicListeners() {
				note("listener/", l.GetActiveState().GetVersionInfo(), l.GetActiveState().GetListener(), l.GetErrorState())
				note("warming listener/", l.GetWarmingState().GetVersionInfo(), l.GetWarmingState().GetListener(), nil)
			}
		case *admin.EcdsConfigDump:
			for _, f := range m.GetEcdsFilters() {
				note("", f.GetVersionInfo(), f.GetEcdsFilter(), f.GetErrorState())
			}
		case *admin.EndpointsConfigDump:
			for _, e := range m.GetDynamicEndpointConfigs() {
				note("endpoints/", e.GetVersionInfo(), e.GetEndpointConfig(), e.GetErrorState())
			}
		case *admin.RoutesConfigDump:
			for _, r := range m.GetStaticRouteConfigs() {
				var table route.RouteConfiguration
				if err := r.GetRouteConfig().UnmarshalTo(&table); err != nil {
					t.Fatal(err)
				}
				tables = append(tables, describe(&table))
			}
			for _, r := range m.GetDynamicRouteConfigs() {
				note("route/", r.GetVersionInfo(), r.GetRouteConfig(), r.GetErrorState())
			}
		}
	}
	slices.Sort(tables)
	got[inlineRoutes] = strings.Join(tables, "\n")
	return got, refused
}

func hasKey(l loaded, name string) bool { _, ok := l[name]; return ok }

// configOf reads the parts of an Envoy's configuration.
func configOf(t *testing.T, at uint32) []proto.Message {
	t.Helper()
	text := envoytest.Admin(t, at, "/config_dump?include_eds")
	var all admin.ConfigDump
	if err := protojson.Unmarshal(text, &all); err != nil {
		t.Fatalf("reading Envoy's configuration: %v", err)
	}
	var out []proto.Message
	for _, part := range all.GetConfigs() {
		msg, err := part.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, msg)
	}
	return out
}

// startEnvoy runs the Envoy of a pod, and returns its admin port.
func startEnvoy(t *testing.T, p *pilot, pod string) uint32 {
	t.Helper()
	return start(t, p, pod, false)
}

// start runs the Envoy of a pod. It may listen with all listeners, also with those that are found by a connection's destination elsewhere.
func start(t *testing.T, p *pilot, pod string, all bool) uint32 {
	t.Helper()
	return startIn(t, envoytest.NewCA(t), p, pod, all, nil)
}

// startIn runs the Envoy of a pod in the mesh of a CA, with resources altered, if alter is not nil.
func startIn(t *testing.T, ca *envoytest.CA, p *pilot, pod string, all bool, alter func(proto.Message)) uint32 {
	t.Helper()
	known := p.pod(pod)
	if known == nil {
		t.Fatalf("no pod %q", pod)
	}
	id := spiffe.ID{TrustDomain: settings.TrustDomain, Namespace: known.Namespace, ServiceAccount: known.ServiceAccount}
	leaf, files := ca.Issue(t, id.String()), t.TempDir()
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(files, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cert-chain.pem", leaf.Cert)
	write("key.pem", leaf.Key)
	write("root-cert.pem", ca.Root)
	if err := closer.Write(files); err != nil {
		t.Fatal(err)
	}
	for name, description := range handshake.SecretFiles() {
		text, err := protojson.Marshal(description)
		if err != nil {
			t.Fatal(err)
		}
		write(name, bytes.ReplaceAll(text, []byte(handshake.FilesPath), []byte(files)))
	}
	node := p.node(t, known.Node)
	t.Cleanup(p.stop)
	node.Add(known.UID, known.ID, known.ServiceAccount)
	agent := &envoytest.Agent{ADS: &onThisMachine{node: node.Node, pod: known, files: files, all: all, alter: alter}, Leaf: leaf, Root: ca.Root}
	return agent.Start(t, nodeID(known))
}

// onThisMachine is the agent for an Envoy that is no pod's: it listens on ports that are free, and has the files of its
// certificate in a directory of the test. All else comes as it is.
type onThisMachine struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	node  *nodexds.Node
	pod   *registry.Pod
	files string
	all   bool                // listeners listen
	alter func(proto.Message) // what the Envoy is to have otherwise, or nil
}

type adsStream = grpc.BidiStreamingServer[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]

func (o *onThisMachine) DeltaAggregatedResources(rpc adsStream) error {
	return serve(o.node, o.pod, &relocating{rpc, o})
}

type relocating struct {
	adsStream
	*onThisMachine
}

func (r *relocating) SendShared(sent *deltaxds.Response) error {
	out := proto.CloneOf(sent.DeltaDiscoveryResponse)
	for _, res := range out.GetResources() {
		if err := r.relocate(res.GetResource()); err != nil {
			return fmt.Errorf("resource %s: %w", res.GetName(), err)
		}
	}
	return r.Send(out)
}

func (r *relocating) relocate(body *anypb.Any) error {
	msg, err := body.UnmarshalNew()
	if err != nil {
		return err
	}
	for _, path := range []string{handshake.FilesPath, names.IdentityMountPath} {
		if !bytes.Contains(body.GetValue(), []byte(path)) {
			continue
		}
		text, err := protojson.Marshal(msg)
		if err != nil {
			return err
		}
		if err := protojson.Unmarshal(bytes.ReplaceAll(text, []byte(path), []byte(r.files)), msg); err != nil {
			return err
		}
	}
	envoytest.OwnSocket(msg, r.files)
	if r.alter != nil {
		r.alter(msg)
	}
	if err := body.MarshalFrom(msg); err != nil {
		return err
	}
	l, ok := msg.(*listener.Listener)
	if !ok || l.GetBindToPort() != nil && !r.all || l.GetAddress().GetPipe() != nil { // what is bound is so by default
		return nil
	}
	l.AdditionalAddresses, l.BindToPort = nil, nil
	if r.all { // who says where a connection was going is believed
		l.ListenerFilters = slices.Insert(l.ListenerFilters, 0, envoy.ListenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocol.ProxyProtocol{AllowRequestsWithoutProxyProtocol: true}))
	}
	a := l.GetAddress().GetSocketAddress()
	a.Address, a.PortSpecifier = "127.0.0.1", &core.SocketAddress_PortValue{PortValue: 0}
	return body.MarshalFrom(l)
}
