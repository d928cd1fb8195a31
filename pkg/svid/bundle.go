package svid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Bundle follows the trust bundle that Citadel keeps in a ConfigMap. It keeps the last good one when the ConfigMap is
// deleted or damaged.
type Bundle struct {
	td        spiffeid.TrustDomain
	client    kubernetes.Interface
	namespace string
	log       *slog.Logger

	mu      sync.RWMutex
	current *x509bundle.Bundle
	changed chan struct{} // closed and replaced at each change
}

// NewBundle returns the bundle of the trust domain as published in the namespace; it is empty until Run has read it.
func NewBundle(trustDomain, namespace string, client kubernetes.Interface, log *slog.Logger) (*Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	return &Bundle{td: td, client: client, namespace: namespace, log: log, changed: make(chan struct{})}, nil
}

// Run watches the ConfigMap until ctx ends.
func (b *Bundle) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithNamespace(b.namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", mesh.TrustBundleConfig).String()
		}))
	informer := factory.Core().V1().ConfigMaps().Informer()
	take := func(obj any) {
		if cm, ok := obj.(*corev1.ConfigMap); ok && cm.Name == mesh.TrustBundleConfig {
			if err := b.Set([]byte(cm.Data[mesh.RootCertKey])); err != nil {
				b.log.Warn("keeping the last good trust bundle", "configMap", cm.Namespace+"/"+cm.Name, "error", err)
			}
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: take, UpdateFunc: func(_, obj any) { take(obj) }}); err != nil {
		return fmt.Errorf("watching the trust bundle: %w", err)
	}
	informer.RunWithContext(ctx)
	return nil
}

// Set replaces the bundle by the PEM certificates.
func (b *Bundle) Set(pem []byte) error {
	next, err := x509bundle.Parse(b.td, pem)
	if err != nil {
		return fmt.Errorf("parsing the trust bundle: %w", err)
	}
	if next.Empty() {
		return errors.New("trust bundle has no certificate")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && b.current.Equal(next) {
		return nil
	}
	b.current = next
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// ErrNoBundle is why nothing can be verified yet.
var ErrNoBundle = errors.New("no trust bundle has been read yet")

// Current returns the bundle and a channel that is closed when it changes.
func (b *Bundle) Current() (*x509bundle.Bundle, <-chan struct{}, error) {
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
	if td != b.td {
		return nil, fmt.Errorf("no bundle for trust domain %q", td.Name())
	}
	current, _, err := b.Current()
	return current, err
}
