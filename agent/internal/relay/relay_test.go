package relay

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
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
	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// pilot is Pilot over mutual TLS.
type pilot struct {
	*nodexdstest.Pilot
	t       *testing.T
	ca      *svidtest.CA
	address string
	server  *grpc.Server
}

func newPilot(t *testing.T, ca *svidtest.CA) *pilot {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pilot{Pilot: nodexdstest.NewPilot(), t: t, ca: ca, address: l.Addr().String()}
	p.serve(l)
	t.Cleanup(func() { p.server.Stop() })
	return p
}

func (p *pilot) serve(l net.Listener) {
	own := p.ca.SVID(p.ca.ID(mesh.Namespace, mesh.PilotAccount), time.Now().Add(time.Hour))
	options := mtls.ServerOptions(mtls.Server(own, p.ca.Bundle(), mtls.MemberOf("cluster.local")), mtls.Limits{})
	p.server = grpc.NewServer(append(options, grpc.ForceServerCodecV2(deltaxds.Codec()))...)
	nodev1.RegisterNodeConfigurationServer(p.server, p)
	server := p.server
	go server.Serve(l)
}

// restart comes back without any memory of its streams.
func (p *pilot) restart() {
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.serve(l)
}

func (p *pilot) set(url, name string, msg proto.Message) {
	p.t.Helper()
	r, err := deltaxds.NewResource(name, msg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Set(url, r)
}

// agent is the identity of the node's agent.
type agent struct {
	*x509svid.SVID
	*x509bundle.Set
}

func (agent) WaitReady(context.Context) error { return nil }

// node is the relay of a node with the sockets of its pods in memory.
type node struct {
	t       *testing.T
	ca      *svidtest.CA
	relay   *Relay
	bundle  *svid.Bundle
	metrics *Metrics
}

func newNode(t *testing.T, ca *svidtest.CA, pilotAddress string) *node {
	t.Helper()
	bundle, err := svid.NewBundle("cluster.local", mesh.Namespace, fake.NewClientset(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Set(ca.PEM()); err != nil {
		t.Fatal(err)
	}
	own := agent{ca.SVIDOf(ca.ID(mesh.Namespace, mesh.AgentAccount), spiffe.Pod{Name: "agent-x", UID: "u-agent", Node: "node-1"}, time.Now().Add(time.Hour)),
		x509bundle.NewSet(ca.Bundle())}
	n := &node{t: t, ca: ca, bundle: bundle, metrics: NewMetrics(prometheus.NewRegistry())}
	n.relay = New(Config{Pilot: pilotAddress, TrustDomain: "cluster.local", Agent: own, Bundle: bundle, Clock: clock.RealClock{}, Metrics: n.metrics, Log: quiet})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

// pod is one with its socket.
type pod struct {
	t        *testing.T
	name     string
	conn     *grpc.ClientConn
	identity *identity.Identity
}

func newPod(t *testing.T, ca *svidtest.CA, pilotAddress string) *pod {
	t.Helper()
	return newNode(t, ca, pilotAddress).pod("payroll-1")
}

func (n *node) pod(name string) *pod {
	t, ca, bundle := n.t, n.ca, n.bundle
	t.Helper()
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
		New(identity.Facts{Namespace: "finance", Pod: name, UID: "uid-" + name, ServiceAccount: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	id.SetToken("token", time.Time{})
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	run := n.relay.Attach(id, server)
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
	return &pod{t, name, conn, id}
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

func TestConfigurationComesFromPilotToTheAgent(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	n := newNode(t, ca, p.address)
	e := n.pod("payroll-1").envoy(nodeID)
	r := e.next(deltaxds.ClusterType)
	if names(r) != "a" {
		t.Fatalf("clusters %q", names(r))
	}
	e.ack(r)
	id, err := spiffe.FromCertificate(p.Peers()[0])
	if err != nil {
		t.Fatal(err)
	}
	of, err := spiffe.PodOf(p.Peers()[0])
	if err != nil || id.String() != "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent" || of.Node != "node-1" {
		t.Fatalf("Pilot saw %s of node %s, %v", id, of.Node, err)
	}
	p.set(deltaxds.EndpointType, "a", &endpoint.ClusterLoadAssignment{ClusterName: "a"})
	eventually(t, "the agent has the endpoints", func() bool {
		has, _ := n.relay.node.Proxy("uid-payroll-1", "", "").Resource(deltaxds.EndpointType, "a")
		return has != nil
	})
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
	p.Remove(deltaxds.ClusterType, "a")
	r = e.next(deltaxds.ClusterType)
	if names(r) != "-a" {
		t.Fatalf("clusters %q", names(r))
	}
	e.ack(r)
}

// A resource crosses the wire once for all pods of the node.
func TestPodsOfANodeShareAStream(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	n := newNode(t, ca, p.address)
	for i := range 5 {
		pod := n.pod(fmt.Sprintf("payroll-%d", i))
		e := pod.envoy(fmt.Sprintf("sidecar~10.0.0.1~payroll-%d.finance~finance.svc.cluster.local", i))
		r := e.next(deltaxds.ClusterType)
		if names(r) != "a" {
			t.Fatalf("pod %d: clusters %q", i, names(r))
		}
		e.ack(r)
		eventually(t, "Pilot hears of it", func() bool { return p.Status("uid-"+pod.name, deltaxds.ClusterType).GetAcked() == 1 })
	}
	if p.Sent() != 1 || len(p.Peers()) != 1 {
		t.Fatalf("%d resources on %d streams", p.Sent(), len(p.Peers()))
	}
}

func TestPilotHearsWhatTheProxyTookAndRefused(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	e := newPod(t, ca, p.address).envoy(nodeID)
	r := e.next(deltaxds.ClusterType)
	status := func() *nodev1.Type { return p.Status("uid-payroll-1", deltaxds.ClusterType) }
	eventually(t, "it is told that clusters are sent", func() bool { return status().GetSent() == 1 })
	if st := status(); st.GetAcked() > 0 || !st.GetPending() {
		t.Fatalf("Pilot was told of an answer that the proxy has not given: %v", st)
	}
	e.ack(r)
	eventually(t, "acknowledged", func() bool { return status().GetAcked() == 1 && !status().GetPending() })
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a", AltStatName: "bad"})
	r = e.next(deltaxds.ClusterType)
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no such thing"}})
	eventually(t, "refused", func() bool {
		st := status()
		return st.GetNacked() == 1 && st.GetRefused() == "a" && strings.Contains(st.GetReason(), "no such thing")
	})
}

// A proxy that hangs does not keep others of its node from what is new.
func TestProxyThatHangsHoldsUpNoOther(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	n := newNode(t, ca, p.address)
	hangs := n.pod("hangs").envoy("sidecar~10.0.0.2~hangs.finance~x")
	hangs.next(deltaxds.ClusterType) // and is never answered, nor anything else read
	e := n.pod("payroll-1").envoy(nodeID)
	e.ack(e.next(deltaxds.ClusterType))
	for i := range 100 {
		p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a", AltStatName: strings.Repeat(fmt.Sprint(i%10), 100_000)})
		e.ack(e.next(deltaxds.ClusterType))
	}
	eventually(t, "Pilot knows both", func() bool {
		other, own := p.Status("uid-hangs", deltaxds.ClusterType), p.Status("uid-payroll-1", deltaxds.ClusterType)
		return other.GetPending() && other.GetAcked() == 0 && !own.GetPending() && own.GetAcked() == 101
	})
}

// A pod that Pilot has not spoken of waits, and is told nothing of what others have.
func TestPodThatPilotHasNotSpokenOfWaits(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	n := newNode(t, ca, p.address)
	e := n.pod("payroll-1").envoy(nodeID)
	e.ack(e.next(deltaxds.ClusterType))
	p.Estrange()
	late := n.pod("late").envoy("sidecar~10.0.0.2~late.finance~x")
	late.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType, ResourceNamesSubscribe: []string{"a"}})
	eventually(t, "Pilot is told that it waits", func() bool { return p.Status("uid-late", deltaxds.EndpointType).GetSubscribed() == 1 })
	if st := p.Status("uid-late", deltaxds.ClusterType); st.GetSent() > 0 || !st.GetPending() {
		t.Fatalf("it has %v", st)
	}
	p.Meet("uid-late")
	if r := late.next(deltaxds.ClusterType); names(r) != "a" {
		t.Fatalf("clusters %q", names(r))
	}
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
	p.set(deltaxds.ClusterType, "b", &cluster.Cluster{Name: "b"})
	p.restart()
	if got := names(second.next(deltaxds.ClusterType)); got != "b" {
		t.Fatalf("after Pilot's return: %q", got)
	}
	if p.Sent() != 1 {
		t.Fatalf("Pilot sent %d resources after its return", p.Sent())
	}
}

func TestRemovalWhilePilotWasDisconnectedReachesTheProxy(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	p := newPilot(t, ca)
	p.set(deltaxds.ClusterType, "a", &cluster.Cluster{Name: "a"})
	p.set(deltaxds.ClusterType, "b", &cluster.Cluster{Name: "b"})
	e := newPod(t, ca, p.address).envoy(nodeID)
	e.ack(e.next(deltaxds.ClusterType))
	eventually(t, "acknowledged", func() bool { return p.Status("uid-payroll-1", deltaxds.ClusterType).GetAcked() == 1 })
	p.server.Stop()
	p.Remove(deltaxds.ClusterType, "a")
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
	if st := p.Status("uid-payroll-1", deltaxds.SecretType); st != nil {
		t.Fatalf("Pilot is told of secrets: %v", st)
	}
}
