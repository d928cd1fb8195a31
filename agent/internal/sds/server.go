package sds

import (
	"context"
	"log/slog"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Server serves one pod's secrets by delta SDS: the certificate as "default" or by its SPIFFE ID, the trust bundle as
// "ROOTCA" or by the trust domain's SPIFFE ID.
type Server struct {
	secretservice.UnimplementedSecretDiscoveryServiceServer
	pod    *identity.Identity
	bundle *svid.Bundle
	log    *slog.Logger
}

// Attach adds SDS to a pod's socket.
func Attach(bundle *svid.Bundle, log *slog.Logger) func(*identity.Identity, grpc.ServiceRegistrar) func(context.Context) {
	return func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
		secretservice.RegisterSecretDiscoveryServiceServer(s, New(p, bundle, log))
		return nil
	}
}

// New returns the server of a pod.
func New(p *identity.Identity, bundle *svid.Bundle, log *slog.Logger) *Server {
	return &Server{pod: p, bundle: bundle, log: log}
}

// DeltaSecrets implements SecretDiscoveryService. A secret that is not there yet is waited for.
func (s *Server) DeltaSecrets(rpc secretservice.SecretDiscoveryService_DeltaSecretsServer) error {
	session := s.Open()
	defer session.Close()
	stream := deltaxds.NewStream(session, clock.RealClock{})
	ctx, cancel := context.WithCancel(rpc.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Follow(ctx, stream.Dirty) })
	defer wg.Wait()
	defer cancel()
	return stream.Serve(rpc, nil)
}

// FetchSecrets implements SecretDiscoveryService: xDS over REST is not served.
func (s *Server) FetchSecrets(context.Context, *discovery.DiscoveryRequest) (*discovery.DiscoveryResponse, error) {
	return nil, status.Error(codes.Unimplemented, "use DeltaSecrets")
}

// Follow calls dirty for each secret that changes, until ctx ends.
func (s *Server) Follow(ctx context.Context, dirty func(typeURL string, names ...string)) {
	for {
		certificate := s.pod.Changed()
		_, bundle, _ := s.bundle.Current() // not being there yet is no error here
		dirty(deltaxds.SecretType, mesh.WorkloadSecretName, mesh.RootCASecretName, s.pod.ID.String(), trustDomain(s.pod.ID))
		select {
		case <-certificate:
		case <-bundle:
		case <-ctx.Done():
			return
		}
	}
}
