package envoytest

import (
	"net"
	"path/filepath"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Agent stands for the node agent of one proxy: a socket with the configuration of a discovery service and the certificate
// of the proxy's pod.
type Agent struct {
	secretservice.UnimplementedSecretDiscoveryServiceServer
	ADS  discovery.AggregatedDiscoveryServiceServer
	Leaf Leaf
	Root []byte // PEM
}

// Start runs an Envoy that takes all it has from the agent, by the bootstrap of production, until the test ends. It returns
// Envoy's admin port, once Envoy is ready.
func (a *Agent) Start(t testing.TB, node string) (admin uint32) {
	t.Helper()
	b := translate.Bootstrap()
	admin = FreePorts(t, 1)[0]
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: admin}
	a.StartIn(t, nil, b, node)
	return admin
}

// StartIn does the same in a network namespace, or in the test's own if it is nil, by a bootstrap.
func (a *Agent) StartIn(t testing.TB, in *Netns, b *bootstrap.Bootstrap, node string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, a.ADS)
	secretservice.RegisterSecretDiscoveryServiceServer(srv, a)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	agent := b.GetStaticResources().GetClusters()[0].GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint()
	agent.Address = &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: socket}}}
	start(t, in, b, node)
}

// DeltaSecrets serves the pod's certificate and the trust bundle.
func (a *Agent) DeltaSecrets(rpc secretservice.SecretDiscoveryService_DeltaSecretsServer) error {
	return deltaxds.NewStream(secrets{a}, clock.RealClock{}).Serve(rpc, nil)
}

// secrets is the source of the agent's streams.
type secrets struct{ agent *Agent }

func (s secrets) Resource(_, name string) (*deltaxds.Resource, bool) {
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	secret := &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: inline(s.agent.Leaf.Cert), PrivateKey: inline(s.agent.Leaf.Key)}}}
	if name == mesh.RootCASecretName {
		secret.Type = &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(s.agent.Root)}}
	}
	r, err := deltaxds.NewResource(name, secret)
	return r, err == nil
}

func (secrets) Wildcard(string) ([]string, bool)      { return nil, true }
func (secrets) Subscribed(string, []string, []string) {}
