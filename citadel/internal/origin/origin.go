// Package origin is where a CA's key and certificate come from: Citadel itself, Secret cacerts, or a signer of the
// CertificateSigningRequest API. What it returns has been tried: it can issue what peers accept.
package origin

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const callTimeout = 10 * time.Second

// Origins makes CAs.
type Origins struct {
	Client   kubernetes.Interface
	Rotation rotate.Config
	Upstream UpstreamConfig
	Clock    clock.PassiveClock
}

// First returns the CA that a mesh begins with: the plugged-in one if there is one, else one of the configured signer,
// else a root of its own.
func (o *Origins) First(ctx context.Context) (rotate.Signer, error) {
	plugged, err := o.Plugged(ctx)
	if err == nil || !errors.Is(err, ErrNotPlugged) {
		return plugged, err
	}
	return o.fresh(ctx)
}

// Next returns a CA to rotate to on an operator's word. A plugged-in CA is rotated by replacing Secret cacerts.
func (o *Origins) Next(ctx context.Context) (rotate.Signer, error) {
	_, err := o.Plugged(ctx)
	if err == nil {
		return rotate.Signer{}, fmt.Errorf("Secret %s/%s holds a plugged-in CA: replace it to rotate, or remove it to go back to Citadel's own", mesh.Namespace, mesh.PluggedCASecret)
	}
	if !errors.Is(err, ErrNotPlugged) {
		return rotate.Signer{}, err
	}
	return o.fresh(ctx)
}

func (o *Origins) fresh(ctx context.Context) (rotate.Signer, error) {
	if o.Upstream.Signer != "" {
		return o.request(ctx)
	}
	root, err := ca.NewRoot(o.Rotation.TrustDomain, o.Rotation.KeyType, o.Clock.Now(), o.Rotation.RootTTL)
	return rotate.Signer{Material: root, Origin: rotate.SelfSigned}, err
}

// ErrNotPlugged says that there is no Secret cacerts.
var ErrNotPlugged = errors.New("no CA is plugged in")

// Plugged returns the CA of Secret cacerts, which it reads.
func (o *Origins) Plugged(ctx context.Context) (rotate.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := o.Client.CoreV1().Secrets(mesh.Namespace).Get(ctx, mesh.PluggedCASecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return rotate.Signer{}, ErrNotPlugged
	}
	if err != nil {
		return rotate.Signer{}, fmt.Errorf("reading Secret %s/%s: %w", mesh.Namespace, mesh.PluggedCASecret, err)
	}
	return o.OfSecret(secret)
}

// OfSecret returns the CA of Secret cacerts as it was seen; nil stands for none.
func (o *Origins) OfSecret(secret *corev1.Secret) (rotate.Signer, error) {
	if secret == nil {
		return rotate.Signer{}, ErrNotPlugged
	}
	m := ca.Material{Cert: secret.Data[mesh.CACertKey], Key: secret.Data[mesh.CAKeyKey], Chain: secret.Data[mesh.CertChainKey], Root: secret.Data[mesh.RootCertKey]}
	if _, err := rotate.Usable(m, o.Rotation.TrustDomain, o.Clock); err != nil {
		return rotate.Signer{}, fmt.Errorf("Secret %s/%s is of no use: %w", mesh.Namespace, mesh.PluggedCASecret, err)
	}
	return rotate.Signer{Material: m, Origin: rotate.PluggedIn}, nil
}
