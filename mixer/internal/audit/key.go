package audit

import (
	"context"
	"crypto/rand"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
)

// KeySecret holds the key that signs checkpoints. It is not on the disk that it vouches for: who steals or rewrites the
// trail's volume cannot sign it anew. The installation makes the Secret empty, so that Mixer needs no right to create one.
const KeySecret = "bulwark-audit-key"

const (
	privateKey = "private"
	publicKey  = "public"
)

// Signer returns the signer of checkpoints; the first Mixer to run makes the key.
func Signer(ctx context.Context, secrets coreclient.SecretInterface) (note.Signer, error) {
	secret, err := secrets.Get(ctx, KeySecret, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the audit trail's key from Secret %s: %w", KeySecret, err)
	}
	if len(secret.Data[privateKey]) == 0 {
		if secret, err = makeKey(ctx, secrets, secret); err != nil {
			return nil, fmt.Errorf("making the audit trail's key in Secret %s: %w", KeySecret, err)
		}
	}
	signer, err := note.NewSigner(string(secret.Data[privateKey]))
	if err != nil {
		return nil, fmt.Errorf("Secret %s does not hold a signing key: %w", KeySecret, err)
	}
	return signer, nil
}

func makeKey(ctx context.Context, secrets coreclient.SecretInterface, secret *corev1.Secret) (*corev1.Secret, error) {
	private, public, err := note.GenerateKey(rand.Reader, Origin)
	if err != nil {
		return nil, err
	}
	secret = secret.DeepCopy()
	secret.Data = map[string][]byte{privateKey: []byte(private), publicKey: []byte(public)}
	return secrets.Update(ctx, secret, metav1.UpdateOptions{}) // a conflict means that another made one: the caller starts anew
}
