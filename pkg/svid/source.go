package svid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// DefaultTokenFile is where manifests project a component's token for Citadel.
const DefaultTokenFile = "/var/run/secrets/bulwark/citadel/token"

// Options configure a component's Source. TrustDomain and Client must be set; other zero values take the default.
type Options struct {
	TrustDomain string
	Client      kubernetes.Interface // reads the trust bundle
	Namespace   string               // of the component; mesh.Namespace
	TokenFile   string               // DefaultTokenFile
	Citadel     string               // address; DefaultCitadel
	TTL         time.Duration        // 0 leaves it to Citadel
	Clock       clock.Clock          // the real one
	Log         *slog.Logger         // slog.Default()
}

// Source is a component's own identity and trust bundle. It implements x509svid.Source and x509bundle.Source.
type Source struct {
	*Rotator
	Bundle    *Bundle
	requester *Requester
}

// NewSource returns a source that is empty until Run has obtained what it needs.
func NewSource(o Options) (*Source, error) {
	if o.Client == nil {
		return nil, errors.New("svid: no Kubernetes client")
	}
	if o.Namespace == "" {
		o.Namespace = mesh.Namespace
	}
	if o.TokenFile == "" {
		o.TokenFile = DefaultTokenFile
	}
	if o.Citadel == "" {
		o.Citadel = DefaultCitadel
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	bundle, err := NewBundle(o.TrustDomain, o.Namespace, o.Client, o.Log)
	if err != nil {
		return nil, err
	}
	requester, err := NewRequester(o.Citadel, o.TrustDomain, bundle)
	if err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context) (*x509svid.SVID, error) {
		// Before there is a bundle no handshake can succeed; waiting here starts the first one at the right moment.
		if err := bundle.WaitReady(ctx); err != nil {
			return nil, err
		}
		token, err := ReadToken(o.TokenFile)
		if err != nil {
			return nil, err
		}
		return requester.Request(ctx, Tokens{Workload: token}, o.TTL, o.Clock.Now())
	}
	return &Source{Rotator: NewRotator(fetch, o.Clock, o.Log, nil), Bundle: bundle, requester: requester}, nil
}

// Run follows the bundle and renews the SVID until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.Rotator.Run(ctx) })
	err := s.Bundle.Run(ctx)
	cancel()
	wg.Wait()
	return errors.Join(err, s.requester.Close())
}

// WaitReady returns when there is an SVID, or with the reason why there is none when ctx ends.
func (s *Source) WaitReady(ctx context.Context) error {
	select {
	case <-s.Ready():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for an SVID: %w", errors.Join(ctx.Err(), s.Status().LastError))
	}
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.Bundle.GetX509BundleForTrustDomain(td)
}

// ReadToken reads a projected token, which kubelet replaces as it ages.
func ReadToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading service account token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("service account token %s is empty", file)
	}
	return token, nil
}
