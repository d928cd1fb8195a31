package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// plugIn makes a company's root and an intermediate for the mesh, which may sign leaves of its trust domain only, and puts
// the intermediate into Secret cacerts, as the documentation says.
func plugIn(ctx context.Context) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := authority("Company root", 0)
	rootDER, err := sign(root, root, rootKey.Public(), rootKey)
	if err != nil {
		return err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return err
	}
	intermediate := authority("Company's mesh", 1)
	intermediate.URIs = []*url.URL{{Scheme: "spiffe", Host: mesh.DefaultTrustDomain}}
	intermediate.MaxPathLenZero, intermediate.PermittedURIDomains, intermediate.PermittedDNSDomainsCritical = true, []string{mesh.DefaultTrustDomain}, true
	der, err := sign(intermediate, root, key.Public(), rootKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert, rootPEM := block("CERTIFICATE", der), block("CERTIFICATE", rootDER)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: mesh.PluggedCASecret, Namespace: mesh.Namespace}, Data: map[string][]byte{
		mesh.CACertKey: cert, mesh.CAKeyKey: block("PRIVATE KEY", keyDER), mesh.CertChainKey: append(cert[:len(cert):len(cert)], rootPEM...), mesh.RootCertKey: rootPEM,
	}}
	if err := unplug(ctx); err != nil {
		return err
	}
	_, err = cluster.CoreV1().Secrets(mesh.Namespace).Create(ctx, secret, metav1.CreateOptions{})
	return err
}

// unplug leaves the mesh with what it has; the next rotation is to a root of Citadel's own again.
func unplug(ctx context.Context) error {
	err := cluster.CoreV1().Secrets(mesh.Namespace).Delete(ctx, mesh.PluggedCASecret, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func authority(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano() + serial), Subject: pkix.Name{CommonName: name + " " + time.Now().Format(time.RFC3339Nano)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, template, parent, public, key)
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
