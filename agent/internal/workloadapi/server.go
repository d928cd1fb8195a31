// Package workloadapi serves the SPIFFE Workload API on a pod's socket, for applications that do mutual TLS or carry
// tokens themselves. Which pod calls is said by the socket, so there is no attestation here.
package workloadapi

import (
	"context"
	"crypto/x509"
	"encoding/hex"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

type server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	pod    *identity.Identity
	bundle *svid.Bundle
	tokens *tokens
}

// Attach adds the Workload API to a pod's socket.
func Attach(bundle *svid.Bundle) func(*identity.Identity, grpc.ServiceRegistrar) func(context.Context) {
	return func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
		workload.RegisterSpiffeWorkloadAPIServer(s, &server{pod: p, bundle: bundle, tokens: newTokens(p, bundle, clock.RealClock{})})
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

// FetchX509SVID implements SpiffeWorkloadAPI: it sends the SVID now, or when there is one, and each that follows. What is
// sent counts as taken: the API has no answer.
func (s *server) FetchX509SVID(_ *workload.X509SVIDRequest, rpc workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := checkHeader(rpc.Context()); err != nil {
		return err
	}
	client := s.pod.Connect(identity.BySocket)
	defer client.Close()
	var sent *x509svid.SVID
	var sentBundle *x509bundle.Bundle
	for {
		certificate := s.pod.Changed()
		trust, bundleChanged, noBundle := s.bundle.Current()
		current, pending := s.pod.GetX509SVID()
		if noBundle == nil && pending == nil {
			if current != sent || !trust.X509.Equal(sentBundle) {
				if err := sendX509(rpc, current, trust.X509); err != nil {
					return err
				}
				sent, sentBundle = current, trust.X509
			}
			client.Holds(identity.Held{Trusts: true, Sequence: trust.Sequence, Issuers: []string{hex.EncodeToString(current.Certificates[0].AuthorityKeyId)}})
		}
		select {
		case <-certificate:
		case <-bundleChanged:
		case <-rpc.Context().Done():
			return nil
		}
	}
}

func sendX509(rpc workload.SpiffeWorkloadAPI_FetchX509SVIDServer, current *x509svid.SVID, bundle *x509bundle.Bundle) error {
	certs, key, err := current.MarshalRaw()
	if err != nil {
		return status.Errorf(codes.Internal, "encoding the SVID of %s failed", current.ID)
	}
	return rpc.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: current.ID.String(), X509Svid: certs, X509SvidKey: key, Bundle: concat(bundle.X509Authorities()),
	}}})
}

// FetchX509Bundles implements SpiffeWorkloadAPI.
func (s *server) FetchX509Bundles(_ *workload.X509BundlesRequest, rpc workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	if err := checkHeader(rpc.Context()); err != nil {
		return err
	}
	var sent *x509bundle.Bundle
	return s.follow(rpc.Context(), func(t *svid.Trust) (bool, error) {
		if t.X509.Equal(sent) {
			return true, nil
		}
		sent = t.X509
		return true, rpc.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{t.X509.TrustDomain().IDString(): concat(t.X509.X509Authorities())}})
	})
}

// follow calls send with the bundle now and whenever it changes; send says whether the client has it.
func (s *server) follow(ctx context.Context, send func(*svid.Trust) (bool, error)) error {
	client := s.pod.Connect(identity.BySocket)
	defer client.Close()
	for {
		trust, changed, pending := s.bundle.Current()
		if pending == nil {
			sent, err := send(trust)
			if err != nil {
				return err
			}
			if sent {
				client.Holds(identity.Held{Trusts: true, Sequence: trust.Sequence})
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
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
