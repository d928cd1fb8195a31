package svid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/kubeobject"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// streamGrace is how long after the stream of bundles has ended the ConfigMap still counts for nothing.
const streamGrace = time.Minute

// Trust is what is trusted at one moment. It is immutable.
type Trust struct {
	X509     *x509bundle.Bundle
	JWT      *jwtbundle.Bundle
	Sequence uint64 // 0 of a bundle that came as bare certificates
	Document []byte // the same as a SPIFFE bundle document

	Signer      []byte        // subject key ID of the key that signs now; empty until Citadel has said it
	RenewWithin time.Duration // the time over which certificates of another signer are renewed
}

// Bundle holds the trust bundle. It comes from two places:
//
// The ConfigMap that Citadel keeps in every namespace is for the beginning, when there is no SVID by which to ask
// anybody. What it says is followed until Citadel's own stream (Follower) has spoken for the first time.
//
// From then on the stream alone changes the bundle, so that who can edit a ConfigMap cannot add a root to a running
// component. Only when the stream has been away for longer than a minute is a ConfigMap of a higher sequence taken:
// a component that Citadel's stream cannot reach must still hear of a new root before it is used.
//
// Within one stream the sequence only rises; what is lower is refused. The first message of a stream is taken as it
// is: it comes over mutual TLS from Citadel itself, and is lower after Citadel's state was restored from a backup.
//
// The last good bundle is kept when the ConfigMap is deleted or damaged.
type Bundle struct {
	td        spiffeid.TrustDomain
	client    kubernetes.Interface
	namespace string
	clock     clock.Clock
	log       *slog.Logger

	mu       sync.RWMutex
	current  *Trust
	changed  chan struct{}     // closed and replaced at each change
	offered  map[string]string // the ConfigMap's data as last seen
	spoken   bool              // the stream has set the bundle once
	alive    bool              // a stream that has spoken is open
	lastSeen time.Time         // when it ended
}

// NewBundle returns the bundle of the trust domain as published in the namespace; it is empty until Run has read it.
func NewBundle(trustDomain, namespace string, client kubernetes.Interface, log *slog.Logger) (*Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	return &Bundle{td: td, client: client, namespace: namespace, clock: clock.RealClock{}, log: log, changed: make(chan struct{})}, nil
}

// Run watches the ConfigMap until ctx ends.
func (b *Bundle) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { b.reconsider(ctx) })
	kubeobject.WatchConfigMap(ctx, b.client, b.namespace, mesh.TrustBundleConfig, func(m *corev1.ConfigMap) {
		if m != nil {
			b.offer(m.Data)
		}
	})
	return nil
}

// reconsider looks at the ConfigMap again now and then: it may have changed while the stream was there.
func (b *Bundle) reconsider(ctx context.Context) {
	for {
		timer := b.clock.NewTimer(streamGrace / 4)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
		b.mu.RLock()
		offered := b.offered
		b.mu.RUnlock()
		if offered != nil {
			b.offer(offered)
		}
	}
}

// offer takes the ConfigMap's data if it counts now.
func (b *Bundle) offer(data map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offered = data
	if b.spoken && (b.alive || b.clock.Since(b.lastSeen) <= streamGrace) {
		return
	}
	next, err := b.fromConfigMap(data)
	if err != nil {
		b.log.Warn("keeping the last good trust bundle", "configMap", b.namespace+"/"+mesh.TrustBundleConfig, "error", err)
		return
	}
	if b.spoken {
		if next.Sequence <= b.current.Sequence {
			return
		}
		b.log.Warn("Citadel's stream of trust bundles is away; taking the newer bundle of the ConfigMap",
			"configMap", b.namespace+"/"+mesh.TrustBundleConfig, "sequence", next.Sequence, "before", b.current.Sequence)
		next.Signer, next.RenewWithin = b.current.Signer, b.current.RenewWithin
	}
	b.set(next)
}

func (b *Bundle) fromConfigMap(data map[string]string) (*Trust, error) {
	if document := data[mesh.BundleKey]; document != "" {
		return trustOf(b.td, []byte(document))
	}
	return trustOfPEM(b.td, []byte(data[mesh.RootCertKey]))
}

func trustOf(td spiffeid.TrustDomain, document []byte) (*Trust, error) {
	parsed, err := ParseDocument(td, document)
	if err != nil {
		return nil, err
	}
	sequence, _ := parsed.SequenceNumber()
	return &Trust{X509: parsed.X509Bundle(), JWT: parsed.JWTBundle(), Sequence: sequence, Document: document}, nil
}

// trustOfPEM reads what a Citadel publishes that knows of certificates only.
func trustOfPEM(td spiffeid.TrustDomain, pem []byte) (*Trust, error) {
	if len(pem) > maxDocument {
		return nil, fmt.Errorf("trust bundle is longer than %d bytes", maxDocument)
	}
	roots, err := x509bundle.Parse(td, pem)
	if err != nil {
		return nil, fmt.Errorf("parsing the trust bundle: %w", err)
	}
	if n := len(roots.X509Authorities()); n == 0 || n > maxKeys {
		return nil, fmt.Errorf("trust bundle has %d certificates", n)
	}
	document, err := spiffebundle.FromX509Bundle(roots).Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the trust bundle: %w", err)
	}
	return &Trust{X509: roots, JWT: jwtbundle.New(td), Document: document}, nil
}

// Set replaces the bundle by the PEM certificates, as if the ConfigMap held them.
func (b *Bundle) Set(pem []byte) error {
	next, err := trustOfPEM(b.td, pem)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(next)
	return nil
}

// hear takes a message of Citadel's stream; first says that it is the first one of its stream.
func (b *Bundle) hear(document, signer []byte, renewWithin time.Duration, first bool) error {
	next, err := trustOf(b.td, document)
	if err != nil {
		return err
	}
	next.Signer, next.RenewWithin = signer, renewWithin
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && next.Sequence < b.current.Sequence {
		if !first {
			return fmt.Errorf("trust bundle %d is older than %d, which this stream has sent", next.Sequence, b.current.Sequence)
		}
		b.log.Warn("Citadel's trust bundle is older than the one before; was its state restored from a backup?", "sequence", next.Sequence, "before", b.current.Sequence)
	}
	b.spoken, b.alive = true, true
	b.set(next)
	return nil
}

// hungUp says that the stream has ended.
func (b *Bundle) hungUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.alive {
		b.alive, b.lastSeen = false, b.clock.Now()
	}
}

// set is called with mu held.
func (b *Bundle) set(next *Trust) {
	if b.current != nil && b.current.equal(next) {
		return
	}
	if b.current == nil || !b.current.X509.Equal(next.X509) || b.current.Sequence != next.Sequence {
		b.log.Info("trust bundle", "sequence", next.Sequence, "roots", len(next.X509.X509Authorities()), "tokenKeys", len(next.JWT.JWTAuthorities()))
	}
	b.current = next
	close(b.changed)
	b.changed = make(chan struct{})
}

func (t *Trust) equal(o *Trust) bool {
	return t.Sequence == o.Sequence && t.X509.Equal(o.X509) && t.JWT.Equal(o.JWT) && bytes.Equal(t.Signer, o.Signer) && t.RenewWithin == o.RenewWithin
}

// ErrNoBundle is why nothing can be verified yet.
var ErrNoBundle = errors.New("no trust bundle has been read yet")

// Current returns the bundle and a channel that is closed when it changes.
func (b *Bundle) Current() (*Trust, <-chan struct{}, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.current == nil {
		return nil, b.changed, ErrNoBundle
	}
	return b.current, b.changed, nil
}

// WaitReady returns when there is a bundle, or with ctx's error.
func (b *Bundle) WaitReady(ctx context.Context) error {
	for {
		_, changed, err := b.Current()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for ConfigMap %s/%s: %w", b.namespace, mesh.TrustBundleConfig, ctx.Err())
		}
	}
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (b *Bundle) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	t, err := b.of(td)
	if err != nil {
		return nil, err
	}
	return t.X509, nil
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (b *Bundle) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	t, err := b.of(td)
	if err != nil {
		return nil, err
	}
	return t.JWT, nil
}

func (b *Bundle) of(td spiffeid.TrustDomain) (*Trust, error) {
	if td != b.td {
		return nil, fmt.Errorf("no bundle for trust domain %q", td.Name())
	}
	t, _, err := b.Current()
	return t, err
}
