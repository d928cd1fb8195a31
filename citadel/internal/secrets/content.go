package secrets

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Config is what configuration says about workload Secrets.
type Config struct {
	TrustDomain string
	TTL         time.Duration
	Fraction    float64 // of its life after which a certificate is renewed, jittered
}

// build returns a Secret with a new key and certificate for the service account.
func build(sa *corev1.ServiceAccount, state *ca.State, c Config) (*corev1.Secret, error) {
	id, err := spiffe.New(c.TrustDomain, sa.Namespace, sa.Name)
	if err != nil {
		return nil, err
	}
	key, err := ca.NewKey()
	if err != nil {
		return nil, fmt.Errorf("making a key for %s: %w", id, err)
	}
	chain, err := state.Signer.Issue(ca.Request{ID: id, PublicKey: key.Public(), TTL: c.TTL})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", id, err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: mesh.SecretPrefix + sa.Name, Namespace: sa.Namespace,
			Labels:          map[string]string{mesh.PartOfLabel: mesh.PartOfValue},
			OwnerReferences: []metav1.OwnerReference{owner(sa)},
		},
		Type: mesh.SecretType,
		Data: map[string][]byte{
			mesh.CertChainKey:  ca.EncodeCerts(chain),
			mesh.PrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
			mesh.RootCertKey:   state.RootsPEM,
		},
	}, nil
}

// owner makes the Secret go with its account.
func owner(sa *corev1.ServiceAccount) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ServiceAccount", Name: sa.Name, UID: sa.UID}
}

// inspect returns when the Secret of the account is due for renewal, or what is wrong with it now.
func inspect(s *corev1.Secret, sa *corev1.ServiceAccount, state *ca.State, c Config, now time.Time) (time.Time, error) {
	switch {
	case len(s.OwnerReferences) != 1 || s.OwnerReferences[0] != owner(sa):
		return time.Time{}, errors.New("owner is not the service account")
	case s.Labels[mesh.PartOfLabel] != mesh.PartOfValue:
		return time.Time{}, errors.New("label is missing")
	case len(s.Data) != 3:
		return time.Time{}, fmt.Errorf("has %d entries, not 3", len(s.Data))
	case !bytes.Equal(s.Data[mesh.RootCertKey], state.RootsPEM):
		return time.Time{}, errors.New("trust bundle is not the current one")
	}
	pair, err := tls.X509KeyPair(s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey])
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate and key: %w", err)
	}
	leaf := pair.Leaf
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range state.Roots {
		roots.AddCert(r)
	}
	for _, der := range pair.Certificate[1:] {
		if inter, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(inter)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return time.Time{}, fmt.Errorf("certificate does not verify: %w", err)
	}
	if id, err := spiffe.FromCertificate(leaf); err != nil || id.Namespace != sa.Namespace || id.ServiceAccount != sa.Name || id.TrustDomain != c.TrustDomain {
		return time.Time{}, errors.New("certificate is for another identity")
	}
	due := dueAt(leaf, c.Fraction)
	if !now.Before(due) {
		return time.Time{}, errDue
	}
	return due, nil
}

// errDue is the one thing wrong with a Secret that is no damage.
var errDue = errors.New("due for renewal")

// dueAt is the fraction of the certificate's life, shifted by up to a tenth of the life either way so that what was
// issued together is not renewed together. The shift comes from the serial number: every replica, and the same one after
// a restart, finds the same moment.
func dueAt(leaf *x509.Certificate, fraction float64) time.Time {
	issued := leaf.NotBefore.Add(ca.Backdate)
	life := leaf.NotAfter.Sub(issued)
	low := leaf.SerialNumber.Bytes()
	jitter := float64(low[len(low)-1])/255*0.2 - 0.1
	return issued.Add(time.Duration(float64(life) * (fraction + jitter)))
}

// merge keeps what others put on the Secret (annotations, labels) and replaces what is Citadel's.
func merge(existing, fresh *corev1.Secret) *corev1.Secret {
	out := existing.DeepCopy()
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	maps.Copy(out.Labels, fresh.Labels)
	out.OwnerReferences, out.Data = fresh.OwnerReferences, fresh.Data
	return out
}
