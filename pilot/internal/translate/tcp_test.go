package translate_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// application is a server that greets, or answers what it hears.
type application struct {
	port     uint32
	accepted atomic.Int32
}

func startApplication(t *testing.T, greets bool) *application {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &application{port: uint32(l.Addr().(*net.TCPAddr).Port)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.accepted.Add(1)
			go func() { // ends with its connection, which Envoy's end closes
				defer c.Close()
				if greets {
					_, _ = io.WriteString(c, "hello")
				}
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return a
}

// tcpWorkload is the inbound side of a TCP port in front of an application.
func tcpWorkload(t *testing.T, policies []authz.Policy, port uint32, serverFirst bool, app *application, ca *envoytest.CA, leaf envoytest.Leaf, revoked ...revocation.Revocation) (*listener.Listener, *cluster.Cluster) {
	t.Helper()
	w := &compile.Workload{
		Class: compile.Class{Namespace: "finance"}, Policies: policies, Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: port, Protocol: protocol.TCP, Mode: authz.Permissive, ServerFirst: serverFirst}},
	}
	l := inboundOn(t, w, port, revoked...)
	for _, c := range l.GetFilterChains() {
		if c.GetTransportSocket() != nil {
			staticCertificates(t, c, ca, leaf)
		}
	}
	return l, staticCluster(applicationBehind(port), app.port)
}

func dropLogs(t *testing.T, c *listener.FilterChain) {
	t.Helper()
	repack(t, last(c).GetTypedConfig(), func(m any) { m.(*tcpproxy.TcpProxy).AccessLog = nil })
}

func staticCluster(name string, port uint32) *cluster.Cluster {
	return &cluster.Cluster{
		Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		LoadAssignment: &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
				Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
					Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}}}}}}}},
	}
}

// talk connects as a client, says something if it has to, and returns what it hears first.
func talk(t *testing.T, port uint32, id spiffe.ID, clients map[spiffe.ID]envoytest.Leaf, sni, say string) string {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !id.IsZero() {
		conn = tls.Client(conn, &tls.Config{ //nolint:gosec // the server's name is not what is tested
			Certificates: []tls.Certificate{clients[id].TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"}, ServerName: sni, MinVersion: tls.VersionTLS13})
	}
	if say != "" {
		if _, err := io.WriteString(conn, say); err != nil {
			return ""
		}
	}
	buf := make([]byte, 64)
	n, _ := conn.Read(buf)
	return string(buf[:n])
}

func allowOnly(id spiffe.ID) []authz.Policy {
	return []authz.Policy{{Meta: authz.Meta{Namespace: "finance", Name: "p"}, Action: authz.Allow, Rules: []authz.Rule{{
		From: []authz.Clauses{{{Attribute: authz.Principal, Values: []authz.Match{{Kind: authz.Exact, Value: id.String()}}}}}}}}}
}

// Of a server that speaks first, a client in plaintext hears as soon as a policy can admit who has no identity; what comes of what the client says then, policies decide.
func TestStrangersAreGreetedWherePoliciesCanAdmitThem(t *testing.T) {
	ports, ca := envoytest.FreePorts(t, 5), envoytest.NewCA(t)
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	app := startApplication(t, true)
	everybody := authz.Policy{Meta: authz.Meta{Namespace: "finance", Name: "all"}, Action: authz.Allow, Rules: []authz.Rule{{}}}
	port := func(action authz.Action, number uint32) authz.Policy {
		return authz.Policy{Meta: authz.Meta{Namespace: "finance", Name: "port"}, Action: action, Rules: []authz.Rule{{To: []authz.Clauses{{{Attribute: authz.DestinationPort, Values: []authz.Match{{Kind: authz.Port, Value: fmt.Sprint(number)}}}}}}}}
	}
	cases := []struct {
		what     string
		policies []authz.Policy
		heard    string
	}{
		{"everybody is admitted", []authz.Policy{everybody}, "hello"},
		{"DENY of another port", []authz.Policy{port(authz.Deny, 1)}, "hello"},
		{"DENY of this port", []authz.Policy{everybody, port(authz.Deny, ports[2])}, ""},
		{"one identity is admitted", allowOnly(identities[0]), ""},
	}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[4]}
	for i, c := range cases {
		l, cl := tcpWorkload(t, c.policies, ports[i], true, app, ca, server)
		b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, l), append(b.StaticResources.Clusters, cl)
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	for i, c := range cases {
		if heard := talk(t, ports[i], spiffe.ID{}, nil, "", ""); heard != c.heard {
			t.Errorf("%s: a client in plaintext that waits for the server heard %q, want %q", c.what, heard, c.heard)
		}
	}
}

// TestDeniedClientHearsNothingFromTheApplication holds for applications that speak first, too: Envoy's network RBAC waits for
// the client's first byte, which a client that only listens never sends.
func TestDeniedClientHearsNothingFromTheApplication(t *testing.T) {
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	clients := map[spiffe.ID]envoytest.Leaf{}
	for _, id := range identities {
		clients[id] = ca.Issue(t, id.String())
	}
	friend, stranger := identities[0], identities[1]
	greeter, declared := startApplication(t, true), startApplication(t, true)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[2]}
	for i, app := range []*application{greeter, declared} {
		l, c := tcpWorkload(t, allowOnly(friend), ports[i], i == 1, app, ca, server)
		b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, l), append(b.StaticResources.Clusters, c)
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	for name, port := range map[string]uint32{"a port": ports[0], "a port declared to speak first": ports[1]} {
		for _, id := range []spiffe.ID{stranger, {}} {
			if heard := talk(t, port, id, clients, "", "knock knock"); heard != "" {
				t.Errorf("%s: %v heard %q", name, id, heard)
			}
		}
	}
	if n := greeter.accepted.Load() + declared.accepted.Load(); n != 0 {
		t.Errorf("denied clients reached the application %d times", n)
	}
	if heard := talk(t, ports[0], friend, clients, "", "knock knock"); !strings.HasPrefix(heard, "hello") {
		t.Errorf("an allowed client that speaks first heard %q", heard)
	}
	if heard := talk(t, ports[1], friend, clients, "", ""); heard != "hello" {
		t.Errorf("an allowed client that waits for the server heard %q", heard)
	}
}
