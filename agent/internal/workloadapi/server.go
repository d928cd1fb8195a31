// Package workloadapi serves the SPIFFE Workload API (X.509) on a pod's socket, for applications that speak TLS
// themselves.
package workloadapi

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

type server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	pod    *identity.Identity
	bundle *svid.Bundle
}

// Attach adds the Workload API to a pod's socket.
func Attach(bundle *svid.Bundle) func(*identity.Identity, grpc.ServiceRegistrar) func(context.Context) {
	return func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
		workload.RegisterSpiffeWorkloadAPIServer(s, &server{pod: p, bundle: bundle})
		return nil
	}
}

// checkHeader demands the header by which section 3 of the Workload API specification keeps requests forged by way of
// a careless HTTP client (SSRF) out.
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header workload.spiffe.io: true is missing")
	}
	return nil
}

// FetchX509SVID implements SpiffeWorkloadAPI: it sends the SVID now, or when there is one, and each that follows.
func (s *server) FetchX509SVID(_ *workload.X509SVIDRequest, rpc workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := checkHeader(rpc.Context()); err != nil {
		return err
	}
	for {
		certificate := s.pod.Changed()
		bundle, bundleChanged, noBundle := s.bundle.Current()
		current, pending := s.pod.GetX509SVID()
		if noBundle == nil && pending == nil {
			certs, key, err := current.MarshalRaw()
			if err != nil {
				return status.Error(codes.Internal, fmt.Sprintf("encoding the SVID of %s failed", current.ID))
			}
			if err := rpc.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
				SpiffeId: current.ID.String(), X509Svid: certs, X509SvidKey: key, Bundle: concat(bundle.X509Authorities()),
			}}}); err != nil {
				return err
			}
		}
		select {
		case <-certificate:
		case <-bundleChanged:
		case <-rpc.Context().Done():
			return nil
		}
	}
}

// FetchX509Bundles implements SpiffeWorkloadAPI.
func (s *server) FetchX509Bundles(_ *workload.X509BundlesRequest, rpc workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	if err := checkHeader(rpc.Context()); err != nil {
		return err
	}
	for {
		bundle, changed, err := s.bundle.Current()
		if err == nil {
			if err := rpc.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{bundle.TrustDomain().IDString(): concat(bundle.X509Authorities())}}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-rpc.Context().Done():
			return nil
		}
	}
}

func concat(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, c.Raw...)
	}
	return out
}
