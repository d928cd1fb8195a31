package svid

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
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
	Leader      string               // address of the Citadel that holds the Lease; DefaultLeader
	TTL         time.Duration        // 0 leaves it to Citadel
	Clock       clock.Clock          // the real one
	Log         *slog.Logger         // slog.Default()
}

// Source is a component's own identity and trust bundle. It implements x509svid.Source and x509bundle.Source.
type Source struct {
	*Rotator
	Bundle    *Bundle
	requester *Requester
	follower  *Follower
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
	if o.Leader == "" {
		o.Leader = DefaultLeader
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
	bundle.clock = o.Clock
	out := &Source{Bundle: bundle, requester: requester}
	out.Rotator = NewRotator(func(ctx context.Context) (*x509svid.SVID, error) {
		// Before there is a bundle no handshake can succeed; waiting here starts the first one at the right moment.
		if err := bundle.WaitReady(ctx); err != nil {
			return nil, err
		}
		return out.fetch(ctx, o)
	}, o.Clock, o.Log, nil)
	out.Follow(bundle)
	out.follower, err = NewFollower(o.Leader, o.TrustDomain, out.Rotator, bundle, o.Clock, o.Log)
	return out, err
}

func (s *Source) fetch(ctx context.Context, o Options) (*x509svid.SVID, error) {
	current, _ := s.GetX509SVID() // nil before the first
	token, err := ReadToken(o.TokenFile)
	if err != nil && current == nil {
		return nil, err
	}
	return s.requester.Obtain(ctx, Tokens{Workload: token, Expires: TokenExpiry(token)}, current, o.TTL, o.Clock.Now())
}

// Report has Citadel told what else this component holds: fill adds it to each report. It is called before Run.
func (s *Source) Report(fill func(*identityv1.Holding)) { s.follower.fill = fill }

// Run follows the bundle and renews the SVID until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.Rotator.Run(ctx) })
	wg.Go(func() {
		select {
		case <-s.Ready():
			s.follower.Run(ctx)
		case <-ctx.Done():
		}
	})
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

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return s.Bundle.GetJWTBundleForTrustDomain(td)
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

// TokenExpiry reads the end of a token that Citadel will check, or the API server has; zero if it has none that can be
// read.
func TokenExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Exp == 0 {
		return time.Time{}
	}
	return time.Unix(claims.Exp, 0)
}
