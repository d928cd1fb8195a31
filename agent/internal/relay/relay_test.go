package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// pilot serves what it is told to, with the stream logic that Pilot has.
type pilot struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	ca      *svidtest.CA
	address string
	server  *grpc.Server

	mu        sync.Mutex
	resources map[string]map[string]*deltaxds.Resource
	streams   []*deltaxds.Stream
	peers     []spiffe.ID
	sent      int // resources
	wanted    map[string]bool
}

func newPilot(t *testing.T, ca *svidtest.CA) *pilot {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pilot{t: t, ca: ca, address: l.Addr().String(), resources: map[string]map[string]*deltaxds.Resource{}, wanted: map[string]bool{}}
	p.serve(l)
	t.Cleanup(func() { p.server.Stop() })
	return p
}

func (p *pilot) serve(l net.Listener) {
	own := p.ca.SVID(p.ca.ID(mesh.Namespace, mesh.PilotAccount), time.Now().Add(time.Hour))
	options := mtls.ServerOptions(mtls.Server(own, p.ca.Bundle(), mtls.MemberOf("cluster.local")), mtls.Limits{})
	p.server = grpc.NewServer(append(options, grpc.ForceServerCodecV2(deltaxds.Codec()))...)
	discovery.RegisterAggregatedDiscoveryServiceServer(p.server, p)
	server := p.server
	go server.Serve(l)
}

// restart comes back without any memory of its streams.
func (p *pilot) restart() {
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.streams, p.sent = nil, 0
	p.mu.Unlock()
	p.serve(l)
}

func (p *pilot) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	id, err := mtls.PeerID(rpc.Context())
	if err != nil {
		return err
	}
	s := deltaxds.NewStream(p, clock.RealClock{})
	p.mu.Lock()
	p.streams, p.peers = append(p.streams, s), append(p.peers, id)
	p.mu.Unlock()
	return s.Serve(&counting{rpc, p}, nil)
}

type counting struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	p *pilot
}

func (c *counting) SendShared(r *deltaxds.Response) error {
	c.p.mu.Lock()
	c.p.sent += len(r.GetResources())
	c.p.mu.Unlock()
	return c.SendMsg(r)
}

func (p *pilot) Resource(url, name string) (*deltaxds.Resource, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resources[url][name], true
}

func (p *pilot) Wildcard(url string) ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name := range p.resources[url] {
		out = append(out, name)
	}
	return out, true
}

func (p *pilot) Subscribed(_ string, added, removed []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range added {
		p.wanted[n] = true
	}
	for _, n := range removed {
		delete(p.wanted, n)
	}
}

func (p *pilot) set(url, name string, msg proto.Message) {
	p.t.Helper()
	r, err := deltaxds.NewResource(name, msg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	if p.resources[url] == nil {
		p.resources[url] = map[string]*deltaxds.Resource{}
	}
	p.resources[url][name] = r
	streams := append([]*deltaxds.Stream(nil), p.streams...)
	p.mu.Unlock()
	for _, s := range streams {
		s.Dirty(url, name)
	}
}

func (p *pilot) remove(url, name string) {
	p.mu.Lock()
	delete(p.resources[url], name)
	streams := append([]*deltaxds.Stream(nil), p.streams...)
	p.mu.Unlock()
	for _, s := range streams {
		s.Dirty(url, name)
	}
}

func (p *pilot) status(url string) deltaxds.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.streams) == 0 {
		return deltaxds.Status{}
	}
	return p.streams[len(p.streams)-1].Status()[url]
}

// pod is the relay of one pod, with its socket in memory.
type pod struct {
	t        *testing.T
	conn     *grpc.ClientConn
	identity *identity.Identity
}

func newPod(t *testing.T, ca *svidtest.CA, pilotAddress string) *pod {
	t.Helper()
	bundle, err := svid.NewBundle("cluster.local", mesh.Namespace, fake.NewClientset(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Set(ca.PEM()); err != nil {
		t.Fatal(err)
	}
	citadel := ca.Serve(time.Hour)
	citadel.Account("token", ca.ID("finance", "payroll"))
	requester, err := svid.NewRequester(citadel.Address, "cluster.local", bundle)
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := (&identity.Issuer{Requester: requester, Bundle: bundle, TrustDomain: "cluster.local", TokenFile: token, Clock: clock.RealClock{}, Metrics: identity.NewMetrics(), Log: quiet}).
		New(identity.Facts{Namespace: "finance", Pod: "payroll-1", UID: "u", ServiceAccount: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	id.SetToken("token", time.Time{})
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	run := Attach(Config{Pilot: pilotAddress, TrustDomain: "cluster.local", Bundle: bundle, Clock: clock.RealClock{}, Metrics: NewMetrics(prometheus.NewRegistry()), Log: quiet})(id, server)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { id.Run(ctx) })
	wg.Go(func() { run(ctx) })
	wg.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient("passthrough:pod", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		server.Stop()
		wg.Wait()
		requester.Close()
	})
	return &pod{t, conn, id}
}

// envoy is one configuration stream of a proxy.
type envoy struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	close  func()
}

const nodeID = "sidecar~10.0.0.1~payroll-1.finance~finance.svc.cluster.local"

func (p *pod) envoy(node string) *envoy {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	p.t.Cleanup(cancel)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		p.t.Fatal(err)
	}
	e := &envoy{p.t, stream, cancel}
	e.send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: node}, TypeUrl: deltaxds.ClusterType})
	return e
}

func (e *envoy) send(r *discovery.DeltaDiscoveryRequest) {
	e.t.Helper()
	if err := e.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		e.t.Fatal(err)
	}
}

// next waits for a response of the type, without answering it.
func (e *envoy) next(url string) *discovery.DeltaDiscoveryResponse {
	e.t.Helper()
	resp, err := e.stream.Recv()
	if err != nil {
		e.t.Fatal(err)
	}
	if resp.GetTypeUrl() != url {
		e.t.Fatalf("a response of type %s, want %s", resp.GetTypeUrl(), url)
	}
	return resp
}

func (e *envoy) ack(r *discovery.DeltaDiscoveryResponse) {
	e.t.Helper()
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func names(r *discovery.DeltaDiscoveryResponse) string {
	var out []string
	for _, x := range r.GetResources() {
		out = append(out, x.GetName())
	}
	for _, x := range r.GetRemovedResources() {
		out = append(out, "-"+x)
	}
	return strings.Join(out, " ")
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 15 seconds: %s", what)
}

func TestConfigurationComesFromPilotToThePodsIdentity(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	e := newPod(t, ca, p.address).envoy(nodeID)
	r := e.next(deltaxds.ClusterType)
	if names(r) != "a" {
		t.Fatalf("clusters %q", names(r))
	}
	e.ack(r)
	if p.peers[0].String() != "spiffe://cluster.local/ns/finance/sa/payroll" {
		t.Fatalf("Pilot saw %s", p.peers[0])
	}
	p.set(deltaxds.EndpointType, "a", &endpoint.ClusterLoadAssignment{ClusterName: "a"})
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType, ResourceNamesSubscribe: []string{"a", "missing"}})
	r = e.next(deltaxds.EndpointType)
	if names(r) != "a -missing" {
		t.Fatalf("endpoints %q", names(r))
	}
	e.ack(r)
	p.set(deltaxds.ClusterType, "b", &cluster.Cluster{Name: "b"})
	r = e.next(deltaxds.ClusterType)
	if names(r) != "b" {
		t.Fatalf("clusters %q", names(r))
	}
	e.ack(r)
	p.remove(deltaxds.ClusterType, "a")
	r = e.next(deltaxds.ClusterType)
	if names(r) != "-a" {
		t.Fatalf("clusters %q", names(r))
	}
	e.ack(r)
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType, ResourceNamesUnsubscribe: []string{"a"}})
	eventually(t, "Pilot hears of the unsubscription", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return !p.wanted["a"] })
}

func TestPilotHearsWhatTheProxyTookAndRefused(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	e := newPod(t, ca, p.address).envoy(nodeID)
	r := e.next(deltaxds.ClusterType)
	for range 20 { // the proxy has not answered yet, so neither may the relay
		if st := p.status(deltaxds.ClusterType); st.Acked > 0 {
			t.Fatal("Pilot was told of an answer that the proxy has not given")
		}
		time.Sleep(time.Millisecond)
	}
	e.ack(r)
	eventually(t, "acknowledged", func() bool { return p.status(deltaxds.ClusterType).Acked == 1 })
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a", AltStatName: "bad"})
	r = e.next(deltaxds.ClusterType)
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no such thing"}})
	eventually(t, "refused", func() bool {
		st := p.status(deltaxds.ClusterType)
		return st.Nacked == 1 && strings.Contains(st.Error, "no such thing")
	})
}

func TestProxyThatStartsWhilePilotIsAwayIsServed(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	p.set(deltaxds.EndpointType, "a", &endpoint.ClusterLoadAssignment{ClusterName: "a"})
	pod := newPod(t, ca, p.address)
	load := func() *envoy {
		t.Helper()
		e := pod.envoy(nodeID)
		r := e.next(deltaxds.ClusterType)
		if names(r) != "a" {
			t.Fatalf("clusters %q", names(r))
		}
		e.ack(r)
		e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType, ResourceNamesSubscribe: []string{"a"}})
		r = e.next(deltaxds.EndpointType)
		if names(r) != "a" {
			t.Fatalf("endpoints %q", names(r))
		}
		e.ack(r)
		return e
	}
	first := load()
	p.server.Stop()
	first.close()
	second := load()

	// A Pilot that comes back is told what is here, and sends only what is new.
	p.mu.Lock()
	r, err := deltaxds.NewResource("b", &cluster.Cluster{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	p.resources[deltaxds.ClusterType]["b"] = r
	p.mu.Unlock()
	p.restart()
	if got := names(second.next(deltaxds.ClusterType)); got != "b" {
		t.Fatalf("after Pilot's return: %q", got)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent != 1 {
		t.Fatalf("Pilot sent %d resources after its return", p.sent)
	}
}

func TestRemovalWhilePilotWasDisconnectedReachesTheProxy(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	p.set(deltaxds.ClusterType, "b", &cluster.Cluster{Name: "b"})
	e := newPod(t, ca, p.address).envoy(nodeID)
	e.ack(e.next(deltaxds.ClusterType))
	eventually(t, "acknowledged", func() bool { return p.status(deltaxds.ClusterType).Acked == 1 })
	p.server.Stop()
	p.remove(deltaxds.ClusterType, "a")
	p.restart()
	if got := names(e.next(deltaxds.ClusterType)); got != "-a" {
		t.Fatalf("after Pilot's return: %q", got)
	}
}

func TestProxyCannotNameAnotherPod(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	pod := newPod(t, ca, p.address)
	for _, id := range []string{"", "sidecar~10.0.0.1~web-1.finance~x", "sidecar~10.0.0.1~payroll-1.other~x", "payroll-1.finance", "a~b~payroll-1.finance~d~e"} {
		if _, err := pod.envoy(id).stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("node %q: %v", id, err)
		}
	}
	if len(p.peers) > 0 {
		t.Fatal("Pilot was asked")
	}
}

func TestSecretsComeFromTheAgentNotFromPilot(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.SecretType, mesh.WorkloadSecretName, &cluster.Cluster{Name: "a forged secret"})
	own := newPod(t, ca, p.address)
	e := own.envoy(nodeID)
	e.ack(e.next(deltaxds.ClusterType))
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResourceNamesSubscribe: []string{mesh.WorkloadSecretName, mesh.RootCASecretName, "another"}})
	if has := own.identity.Clients(); len(has) > 0 {
		t.Fatalf("before its first answer the proxy has %+v", has)
	}
	var got string
	for strings.Count(got, " ") < 3 {
		r := e.next(deltaxds.SecretType)
		for _, res := range r.GetResources() {
			if res.GetResource().GetTypeUrl() != deltaxds.SecretType {
				t.Fatal("Pilot's secret reached the proxy")
			}
		}
		got += names(r) + " "
		e.ack(r)
	}
	for _, want := range []string{mesh.WorkloadSecretName + " ", mesh.RootCASecretName + " ", "-another "} {
		if !strings.Contains(got, want) {
			t.Fatalf("secrets %q", got)
		}
	}
	eventually(t, "the agent knows what the proxy has taken", func() bool {
		has := own.identity.Clients()
		return len(has) == 1 && has[0].Trusts && len(has[0].Issuers) == 1
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted[mesh.WorkloadSecretName] {
		t.Fatal("Pilot was asked for a secret")
	}
}
