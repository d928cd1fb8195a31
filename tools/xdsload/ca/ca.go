// Package ca signs identities with the mesh's own CA key, which an operator may read: for the simulated pods, and for a
// Pilot that runs outside the cluster.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const lifetime = 4 * time.Hour

// CA signs.
type CA struct {
	Bundle *x509bundle.Bundle
	cert   *x509.Certificate
	key    crypto.Signer
}

// Load reads the CA of an installed mesh.
func Load(ctx context.Context, kube kubernetes.Interface) (*CA, error) {
	secret, err := kube.CoreV1().Secrets(mesh.Namespace).Get(ctx, mesh.CASecret, meta.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the CA of the mesh (is Bulwark installed?): %w", err)
	}
	td, err := spiffeid.TrustDomainFromString(mesh.DefaultTrustDomain)
	if err != nil {
		return nil, err
	}
	c := &CA{}
	if c.Bundle, err = x509bundle.Parse(td, secret.Data[mesh.RootCertKey]); err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	cert, _ := pem.Decode(secret.Data[mesh.CACertKey])
	key, _ := pem.Decode(secret.Data[mesh.CAKeyKey])
	if cert == nil || key == nil {
		return nil, fmt.Errorf("Secret %s holds no PEM", mesh.CASecret)
	}
	if c.cert, err = x509.ParseCertificate(cert.Bytes); err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("CA key cannot sign")
	}
	c.key = signer
	return c, nil
}

// Issue makes a key and an SVID for it.
func (c *CA) Issue(namespace, account string) (*x509svid.SVID, error) {
	return c.IssueTo(namespace, account, spiffe.Pod{})
}

// IssueTo makes a key and an SVID for it, which says for which pod it is.
func (c *CA) IssueTo(namespace, account string, pod spiffe.Pod) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	id, err := spiffe.New(mesh.DefaultTrustDomain, namespace, account)
	if err != nil {
		return nil, err
	}
	cert, err := c.sign(id, pod, key.Public())
	if err != nil {
		return nil, err
	}
	parsed, err := spiffeid.FromString(id.String())
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: parsed, Certificates: []*x509.Certificate{cert, c.cert}, PrivateKey: key}, nil
}

func (c *CA) sign(id spiffe.ID, pod spiffe.Pod, key crypto.PublicKey) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	var extensions []pkix.Extension
	if pod != (spiffe.Pod{}) {
		extension, err := pod.Extension()
		if err != nil {
			return nil, err
		}
		extensions = append(extensions, extension)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, URIs: []*url.URL{uri}, NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, ExtraExtensions: extensions,
	}, c.cert, key, c.key)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", id, err)
	}
	return x509.ParseCertificate(der)
}
