package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Limits bound what one connection may cost a server. A zero field takes the default named beside it.
type Limits struct {
	MaxRecvMsgSize       int    // bytes of one message; 4 MiB
	MaxConcurrentStreams uint32 // streams of one connection; 100
	MaxHeaderListSize    uint32 // bytes of decoded headers; 32 KiB (two service account tokens are about 3 KiB)
}

// ServerOptions returns the options of a gRPC server with the TLS configuration and limits.
func ServerOptions(c *tls.Config, l Limits) []grpc.ServerOption {
	return append(BoundedOptions(l), grpc.Creds(credentials.NewTLS(c)))
}

// BoundedOptions returns the limits alone, for a server on a Unix socket.
func BoundedOptions(l Limits) []grpc.ServerOption {
	if l.MaxRecvMsgSize == 0 {
		l.MaxRecvMsgSize = 4 << 20
	}
	if l.MaxConcurrentStreams == 0 {
		l.MaxConcurrentStreams = 100
	}
	if l.MaxHeaderListSize == 0 {
		l.MaxHeaderListSize = 32 << 10
	}
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(l.MaxRecvMsgSize),
		grpc.MaxConcurrentStreams(l.MaxConcurrentStreams),
		grpc.MaxHeaderListSize(l.MaxHeaderListSize),
		grpc.InTapHandle(newPace().tap),
		grpc.ConnectionTimeout(10 * time.Second), // a handshake that dawdles holds a goroutine no longer than this
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// Finds peers that vanished without closing, so that their streams do not live on.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
}

// DialOptions returns the options of a client connection. Reconnecting backs off from 100 ms with jitter, so that a
// restarted server is found soon and not by everyone at once.
func DialOptions(c *tls.Config) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
}

// PeerID returns the verified identity of a gRPC call's client, or an error if the connection has none.
func PeerID(ctx context.Context) (spiffe.ID, error) {
	cert, err := PeerCertificate(ctx)
	if err != nil {
		return spiffe.ID{}, err
	}
	return spiffe.FromCertificate(cert)
}

// PeerCertificate returns the verified leaf certificate of a gRPC call's client. Servers made by ServerOptions with a
// configuration from Server or ServerWithOptionalClientCert verify it during the handshake; no other server's calls have
// one.
func PeerCertificate(ctx context.Context) (*x509.Certificate, error) {
	chain, err := PeerChain(ctx)
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

// PeerChain returns what a gRPC call's client has presented, the verified leaf first. Who lets a peer do what the bundle of
// today must vouch for verifies it again: connections live long.
func PeerChain(ctx context.Context) ([]*x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, errors.New("peer presented no certificate")
	}
	return info.State.PeerCertificates, nil
}
