package bundle

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// source is the keeper as a spiffebundle.Source.
type source struct {
	keeper      *ca.Keeper
	trustDomain string
}

// GetBundleForTrustDomain implements spiffebundle.Source.
func (s source) GetBundleForTrustDomain(td spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	if td.Name() != s.trustDomain {
		return nil, fmt.Errorf("no bundle for trust domain %q", td.Name())
	}
	return Of(s.trustDomain, s.keeper.Current())
}

// ServeEndpoint is the SPIFFE bundle endpoint, in its profile https_spiffe: whoever knows the bundle already follows it
// here. What it serves is public. It ends with ctx.
func ServeEndpoint(ctx context.Context, addr string, config *tls.Config, trustDomain string, keeper *ca.Keeper, log *slog.Logger) error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return fmt.Errorf("bundle endpoint: %w", err)
	}
	handler, err := federation.NewHandler(td, source{keeper, trustDomain})
	if err != nil {
		return fmt.Errorf("bundle endpoint: %w", err)
	}
	l, err := mtls.Listen(ctx, addr)
	if err != nil {
		return fmt.Errorf("bundle endpoint: %w", err)
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(tls.NewListener(l, config)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("bundle endpoint: %w", err)
	}
	return nil
}
