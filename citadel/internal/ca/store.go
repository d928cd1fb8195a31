package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Material is what the CA Secret holds, in PEM. The names of its keys are those of Istio's cacerts, so that a plugged-in
// intermediate comes in the form operators know.
type Material struct {
	Cert  []byte // of the key that signs
	Key   []byte
	Chain []byte // from Cert towards the root; may be empty
	Root  []byte // the trust bundle
}

// NewRoot makes a self-signed root with a P-256 key.
func NewRoot(trustDomain string, now time.Time, ttl time.Duration) (Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Material{}, fmt.Errorf("making the root key: %w", err)
	}
	template, err := rootProfile(trustDomain, now, ttl)
	if err != nil {
		return Material{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Material{}, fmt.Errorf("signing the root: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Material{}, fmt.Errorf("encoding the root key: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return Material{
		Cert: cert, Root: cert, Chain: cert,
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// LoadOrCreate returns the material of the CA Secret. If there is none it stores what make returns, unless another
// replica was faster: then that one's is used by all. A Secret that is there is never overwritten.
func LoadOrCreate(ctx context.Context, secrets typedcorev1.SecretInterface, make func() (Material, error)) (m Material, created bool, err error) {
	got, err := secrets.Get(ctx, mesh.CASecret, metav1.GetOptions{})
	if err == nil {
		return fromSecret(got), false, nil
	}
	if !apierrors.IsNotFound(err) {
		return Material{}, false, fmt.Errorf("reading Secret %s: %w", mesh.CASecret, err)
	}
	fresh, err := make()
	if err != nil {
		return Material{}, false, err
	}
	err = store(ctx, secrets, fresh)
	if apierrors.IsAlreadyExists(err) {
		if got, err = secrets.Get(ctx, mesh.CASecret, metav1.GetOptions{}); err != nil {
			return Material{}, false, fmt.Errorf("reading Secret %s: %w", mesh.CASecret, err)
		}
		return fromSecret(got), false, nil
	}
	return fresh, true, err
}

// Restore puts the Secret back if it was deleted, from what this replica signs with.
func (a *Authority) Restore(ctx context.Context, secrets typedcorev1.SecretInterface) (restored bool, err error) {
	_, created, err := LoadOrCreate(ctx, secrets, func() (Material, error) { return a.material, nil })
	return created, err
}

func store(ctx context.Context, secrets typedcorev1.SecretInterface, m Material) error {
	_, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.CASecret, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}},
		Type:       corev1.SecretTypeOpaque,
		Data:       map[string][]byte{mesh.CACertKey: m.Cert, mesh.CAKeyKey: m.Key, mesh.CertChainKey: m.Chain, mesh.RootCertKey: m.Root},
	}, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("storing Secret %s: %w", mesh.CASecret, err)
	}
	return err
}

func fromSecret(s *corev1.Secret) Material {
	return Material{
		Cert: s.Data[mesh.CACertKey], Key: s.Data[mesh.CAKeyKey], Chain: s.Data[mesh.CertChainKey], Root: s.Data[mesh.RootCertKey],
	}
}
