package secrets

import (
	"cmp"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// build returns a Secret with a new key and certificate for the service account, and the certificate's serial number.
func build(sa *corev1.ServiceAccount, id spiffe.ID, state *ca.State, c Config) (*corev1.Secret, string, error) {
	key, err := ca.NewKeyOf(cmp.Or(c.KeyType, ca.P256))
	if err != nil {
		return nil, "", fmt.Errorf("making a key for %s: %w", id, err)
	}
	chain, err := state.Signer.Issue(ca.Request{ID: id, PublicKey: key.Public(), TTL: c.TTL})
	if err != nil {
		return nil, "", err
	}
	keyPEM, err := ca.EncodeKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("the key of %s: %w", id, err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: mesh.SecretName(sa.Name), Namespace: sa.Namespace,
			Labels:          map[string]string{mesh.PartOfLabel: mesh.PartOfValue},
			OwnerReferences: []metav1.OwnerReference{owner(sa)},
		},
		Type: mesh.SecretType,
		Data: map[string][]byte{
			mesh.CertChainKey:  ca.EncodeCerts(chain),
			mesh.PrivateKeyKey: keyPEM,
			mesh.RootCertKey:   state.RootsPEM,
		},
	}, chain[0].SerialNumber.Text(16), nil
}

// owner makes the Secret go with its account.
func owner(sa *corev1.ServiceAccount) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ServiceAccount", Name: sa.Name, UID: sa.UID}
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

// withBundle returns the Secret with another trust bundle and nothing else changed.
func withBundle(existing *corev1.Secret, state *ca.State) *corev1.Secret {
	out := existing.DeepCopy()
	out.Data[mesh.RootCertKey] = state.RootsPEM
	return out
}
