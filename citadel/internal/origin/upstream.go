package origin

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// UpstreamConfig names the signer that certifies Citadel's key.
type UpstreamConfig struct {
	Signer string        // spec.signerName; empty for none
	Roots  string        // ConfigMap of mesh.Namespace with the signer's roots; empty if its answers end with the root
	TTL    time.Duration // asked for; the signer may give less
}

// upstreamTimeout is how long a signer, and whoever approves the request, may take before it is asked again.
const upstreamTimeout = 10 * time.Minute

// request makes a key and has the signer certify it as an intermediate CA of the trust domain. The key is nowhere but in
// memory until the answer is there; a Citadel that dies meanwhile asks anew.
func (o *Origins) request(ctx context.Context) (rotate.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	key, err := ca.NewKeyOf(o.Rotation.KeyType)
	if err != nil {
		return rotate.Signer{}, err
	}
	keyPEM, err := ca.EncodeKey(key)
	if err != nil {
		return rotate.Signer{}, err
	}
	template, err := requestOf(o.Rotation.TrustDomain)
	if err != nil {
		return rotate.Signer{}, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return rotate.Signer{}, fmt.Errorf("making a request for %s: %w", o.Upstream.Signer, err)
	}
	chain, err := o.certify(ctx, der)
	if err != nil {
		return rotate.Signer{}, fmt.Errorf("signer %s: %w", o.Upstream.Signer, err)
	}
	m := ca.Material{Cert: ca.EncodeCerts(chain[:1]), Key: keyPEM, Chain: ca.EncodeCerts(chain)}
	if m.Root, err = o.upstreamRoots(ctx, chain); err != nil {
		return rotate.Signer{}, err
	}
	if _, err := rotate.Usable(m, o.Rotation.TrustDomain, o.Clock); err != nil {
		return rotate.Signer{}, fmt.Errorf("what signer %s answered is of no use: %w", o.Upstream.Signer, err)
	}
	return rotate.Signer{Material: m, Origin: rotate.Upstream}, nil
}

// requestOf asks for a CA that may sign leaves of the trust domain only. Signers may heed the extensions or set their own.
func requestOf(trustDomain string) (*x509.CertificateRequest, error) {
	basic, err := asn1.Marshal(struct {
		IsCA       bool
		MaxPathLen int
	}{true, 0})
	if err != nil {
		return nil, err
	}
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}) // keyCertSign, cRLSign
	if err != nil {
		return nil, err
	}
	extensions := []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: basic},
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: usage},
	}
	if net.ParseIP(trustDomain) == nil {
		// NameConstraints with one permitted subtree, a URI (RFC 5280, 4.2.1.10).
		uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(trustDomain)}
		constraints, err := asn1.Marshal(struct {
			Permitted []struct{ Base asn1.RawValue } `asn1:"tag:0"`
		}{[]struct{ Base asn1.RawValue }{{uri}}})
		if err != nil {
			return nil, err
		}
		extensions = append(extensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 30}, Critical: true, Value: constraints})
	}
	return &x509.CertificateRequest{
		Subject:         pkix.Name{Organization: []string{"Bulwark"}, CommonName: "Bulwark CA of " + trustDomain},
		URIs:            []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		ExtraExtensions: extensions,
	}, nil
}

// certify has the API's signer sign the request and returns the chain, ours first.
func (o *Origins) certify(ctx context.Context, der []byte) ([]*x509.Certificate, error) {
	requests := o.Client.CertificatesV1().CertificateSigningRequests()
	sum := sha256.Sum256(der)
	seconds := int32(o.Upstream.TTL / time.Second)
	made, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%x", mesh.CitadelAccount, sum[:6]), Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue},
			Annotations: map[string]string{ // cert-manager's, for its signers
				"experimental.cert-manager.io/request-is-ca":    "true",
				"experimental.cert-manager.io/request-duration": o.Upstream.TTL.String(),
			},
		},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: o.Upstream.Signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign},
		},
	}, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	if err != nil {
		return nil, fmt.Errorf("making a CertificateSigningRequest: %w", err)
	}
	answer, err := csr.WaitForCertificate(ctx, o.Client, made.Name, made.UID)
	if err != nil {
		return nil, fmt.Errorf("CertificateSigningRequest %s is not signed (is it approved? kubectl certificate approve %s): %w", made.Name, made.Name, err)
	}
	chain, err := ca.DecodeCerts(answer)
	if err != nil {
		return nil, fmt.Errorf("certificate of CertificateSigningRequest %s: %w", made.Name, err)
	}
	return chain, nil
}

// upstreamRoots returns the roots to trust: those an operator has named, else the one the chain ends with.
func (o *Origins) upstreamRoots(ctx context.Context, chain []*x509.Certificate) ([]byte, error) {
	if o.Upstream.Roots == "" {
		last := chain[len(chain)-1]
		if !bytes.Equal(last.RawSubject, last.RawIssuer) {
			return nil, fmt.Errorf("the chain of signer %s does not end with its root: set upstreamRoots to a ConfigMap that holds it as %s", o.Upstream.Signer, mesh.RootCertKey)
		}
		return ca.EncodeCerts(chain[len(chain)-1:]), nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cm, err := o.Client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, o.Upstream.Roots, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("roots of signer %s: %w", o.Upstream.Signer, err)
	}
	return []byte(cm.Data[mesh.RootCertKey]), nil
}
