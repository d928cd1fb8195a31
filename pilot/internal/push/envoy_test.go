package push

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"regexp"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// sidecar is a real Envoy that takes all it has from the agent of its pod's node.
type sidecar struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	mesh        *testMesh
	pod         string
	application uint32 // port of the application behind it, zero for none
	admin       uint32
}

func (m *testMesh) sidecar(ca *envoytest.CA, id spiffe.ID, pod string, application uint32) *sidecar {
	m.t.Helper()
	s := &sidecar{mesh: m, pod: pod, application: application}
	agent := &envoytest.Agent{ADS: s, Leaf: ca.Issue(m.t, id.String()), Root: ca.Root}
	s.admin = agent.Start(m.t, "sidecar~"+pod)
	return s
}

// DeltaAggregatedResources serves Pilot's resources, but for what needs the redirection of a pod's traffic.
func (s *sidecar) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.mesh.serve(s.pod, &unredirected{rpc, s.application, s.pod})
}

type unredirected struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	application uint32
	of          string // the Envoy, by a name that no other has
}

func (u *unredirected) SendShared(sent *deltaxds.Response) error {
	out := proto.CloneOf(sent.DeltaDiscoveryResponse)
	for _, res := range out.GetResources() {
		msg, err := res.GetResource().UnmarshalNew()
		if err != nil {
			return err
		}
		envoytest.OwnSocket(msg, u.of)
		switch m := msg.(type) {
		case *listener.Listener:
			u.listener(m)
		case *cluster.Cluster:
			if m.GetName() == translate.InboundCluster && u.application != 0 {
				toApplication(m, u.application)
			}
		}
		if err := res.GetResource().MarshalFrom(msg); err != nil {
			return err
		}
	}
	return u.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(out)
}

// listener has a listener take connections on the address they are meant for: 127.0.0.1 and a service's port for clients,
// 127.0.0.3 and the application's port for the server.
func (u *unredirected) listener(l *listener.Listener) {
	a := l.GetAddress().GetSocketAddress()
	if a == nil {
		return
	}
	a.Address = "127.0.0.1"
	switch l.GetName() {
	case translate.VirtualInbound:
		l.ListenerFilters = l.ListenerFilters[1:] // original_dst
		a.Address, a.PortSpecifier = "127.0.0.3", &core.SocketAddress_PortValue{PortValue: u.application}
	case translate.VirtualOutbound, translate.HealthListener, translate.StatsListener:
		a.PortSpecifier = &core.SocketAddress_PortValue{PortValue: 0}
	default:
		l.BindToPort = wrapperspb.Bool(u.application == 0)
	}
}

// takesAPort starts an application at a port that is free at its proxy's address, too.
func takesAPort(t *testing.T, app *httptest.Server) {
	t.Helper()
	_ = app.Listener.Close()
	app.Listener = envoytest.Listen(t)
	app.Start()
}

func toApplication(c *cluster.Cluster, port uint32) {
	c.LbPolicy, c.ClusterDiscoveryType, c.UpstreamBindConfig = cluster.Cluster_ROUND_ROBIN, &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
	c.LoadAssignment = &endpoint.ClusterLoadAssignment{ClusterName: c.GetName(), Endpoints: []*endpoint.LocalityLbEndpoints{{
		LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
			Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
				Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}}}}}}}}
}

var handshakeCount = regexp.MustCompile(`(?m)^listener\.127\.0\.0\.3_.*\.ssl\.handshake: (\d+)$`)

// handshakes tells how many TLS connections the Envoy has taken.
func (s *sidecar) handshakes(t *testing.T) string {
	t.Helper()
	text := envoytest.Admin(t, s.admin, "/stats")
	found := handshakeCount.FindStringSubmatch(string(text))
	if found == nil {
		t.Fatalf("no statistics of handshakes in\n%s", text)
	}
	return found[1]
}

func allowFrom(principal string) registry.Event {
	p := authz.Policy{Meta: authz.Meta{Namespace: "shop", Name: "allow"}, Action: authz.Allow, Selector: map[string]string{"app": "web"},
		Rules: []authz.Rule{{From: []authz.Clauses{{{Attribute: authz.Principal, Values: []authz.Match{{Kind: authz.Exact, Value: principal}}}}}}}}
	return registry.Event{Kind: registry.Policies, ID: "shop/allow", Object: &registry.Policy{ID: "shop/allow", Namespace: "shop", Policy: p}}
}

// policyAllow is that of allowFrom for one identity, and another may ask for one path.
func policyAllow(id, other spiffe.ID) registry.Event {
	e := allowFrom(id.String())
	p := e.Object.(*registry.Policy)
	p.Rules = append(p.Rules, authz.Rule{Index: 1, When: authz.Clauses{clause(authz.Principal, authz.Exact, other.String()), clause(authz.Path, authz.Exact, "/elsewhere")}})
	return e
}

// A request on a connection that was open before a policy or the revocations changed follows the change, and the
// connections stay, as long as the policy leaves anything that may come on them.
func TestOpenConnectionsFollowAChangedPolicy(t *testing.T) {
	application := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	application.Config.Protocols = protocols(true, true)
	takesAPort(t, application)
	t.Cleanup(application.Close)
	target, port := uint32(application.Listener.Addr().(*net.TCPAddr).Port), envoytest.FreePorts(t, 1)[0]

	m := newMesh(t)
	web, endpoints := service("shop", "web", port), slice("shop", "web", "127.0.0.3")
	web.Object.(*registry.Service).Ports[0].Target = target
	endpoints.Object.(*registry.Slice).Ports[0].Number = target
	client, other := account("shop", "client"), account("shop", "other")
	m.apply(web, endpoints, pod("shop", "web", "web-0", "127.0.0.3"), pod("shop", "client", "client-0", "127.0.0.2"), allowFrom(client.String()))
	ca := envoytest.NewCA(t)
	server := m.sidecar(ca, account("shop", "web"), "shop/web-0", target)
	m.sidecar(ca, client, "shop/client-0", 0)

	for name, p := range map[string]*http.Protocols{"HTTP/1.1": protocols(true, false), "HTTP/2.0": protocols(false, true)} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.apply(allowFrom(client.String()))
			transport := &http.Transport{Protocols: p}
			defer transport.CloseIdleConnections()
			open := false
			until := func(want int) { // the Envoys take what they are sent in their own time
				t.Helper()
				for began := time.Now(); ; {
					status, body, reused := get(t, transport, port)
					if open && !reused {
						t.Fatal("the client's connection was closed")
					}
					open = true
					if status == want {
						if want == http.StatusOK && body != name {
							t.Fatalf("the application was asked by %s", body)
						}
						return
					}
					if time.Since(began) > 20*time.Second {
						t.Fatalf("got %d %s, want %d", status, body, want)
					}
				}
			}
			until(http.StatusOK)
			before := server.handshakes(t)
			for range 3 {
				m.apply(policyAllow(other, client))
				until(http.StatusForbidden)
				m.apply(allowFrom(client.String()))
				until(http.StatusOK)
			}
			m.apply(revoke("r", "client", ""))
			until(http.StatusForbidden)
			m.apply(registry.Event{Kind: registry.Revocations, ID: "r"})
			until(http.StatusOK)
			if after := server.handshakes(t); after != before {
				t.Errorf("%s connections of the mesh before, %s after", before, after)
			}
		})
	}
}

func protocols(one, two bool) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(one)
	p.SetUnencryptedHTTP2(two)
	return p
}

func get(t *testing.T, transport *http.Transport, port uint32) (status int, body string, reused bool) {
	t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = fmt.Sprintf("web.shop:%d", port)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), reused
}
