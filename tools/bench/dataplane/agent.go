package dataplane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	metrics "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	logs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
)

// agent stands in for the node agent on a pod's socket: it serves what was captured from Pilot and the pod's secrets,
// and takes metrics and access logs without keeping them.
type agent struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	secret.UnimplementedSecretDiscoveryServiceServer
	logs.UnimplementedLogsServiceServer
	metrics.UnimplementedMetricsServiceServer
	resources
	server *grpc.Server
}

func startAgent(socket string, r resources, authority *ca.CA, svid *x509svid.SVID) (*agent, error) {
	secrets, err := secretsOf(authority, svid)
	if err != nil {
		return nil, err
	}
	a := &agent{resources: maps.Clone(r), server: grpc.NewServer()}
	a.resources[deltaxds.SecretType] = secrets
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket of the agent: %w", err)
	}
	if err := os.Chown(socket, mesh.ProxyUID, mesh.ProxyGID); err != nil {
		return nil, errors.Join(fmt.Errorf("socket of the agent: %w", err), l.Close())
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(a.server, a)
	secret.RegisterSecretDiscoveryServiceServer(a.server, a)
	logs.RegisterLogsServiceServer(a.server, a)
	metrics.RegisterMetricsServiceServer(a.server, a)
	go func() { _ = a.server.Serve(l) }() // ends with stop
	return a, nil
}

func (a *agent) stop() { a.server.Stop() }

func secretsOf(authority *ca.CA, svid *x509svid.SVID) (ca.Secrets, error) {
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the SVID of %s: %w", svid.ID, err)
	}
	return ca.NewSecrets(chain, key, encode(authority.Bundle.X509Authorities()))
}

func encode(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Resource implements deltaxds.Source.
func (r resources) Resource(url, name string) (*deltaxds.Resource, bool) { return r[url][name], true }

// Wildcard implements deltaxds.Source.
func (r resources) Wildcard(url string) ([]string, bool) {
	return slices.Collect(maps.Keys(r[url])), true
}

// Subscribed implements deltaxds.Source.
func (r resources) Subscribed(string, []string, []string) {}

// DeltaAggregatedResources implements AggregatedDiscoveryService.
func (a *agent) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return deltaxds.NewStream(a.resources, clock.RealClock{}).Serve(rpc, nil)
}

// DeltaSecrets implements SecretDiscoveryService.
func (a *agent) DeltaSecrets(rpc secret.SecretDiscoveryService_DeltaSecretsServer) error {
	return deltaxds.NewStream(a.resources, clock.RealClock{}).Serve(rpc, nil)
}

// Export implements LogsService.
func (a *agent) Export(context.Context, *logs.ExportLogsServiceRequest) (*logs.ExportLogsServiceResponse, error) {
	return &logs.ExportLogsServiceResponse{}, nil
}

// StreamMetrics implements MetricsService.
func (a *agent) StreamMetrics(rpc metrics.MetricsService_StreamMetricsServer) error {
	for {
		if _, err := rpc.Recv(); err != nil {
			return ended(rpc.Context(), err)
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
