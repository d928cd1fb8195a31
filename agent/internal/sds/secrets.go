// Package sds gives a pod's Envoy its certificate and the trust bundle over the pod's socket.
package sds

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// certificate is the SVID as Envoy takes it: chain and key, by the name it was asked for.
func certificate(name string, s *x509svid.SVID) (*deltaxds.Resource, error) {
	key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", s.ID, err)
	}
	return deltaxds.NewResource(name, &tls.Secret{
		Name: name,
		Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
			CertificateChain: inline(encode(s.Certificates)),
			PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}},
	})
}

// roots is the trust bundle as Envoy takes it. Who of its members may be at the other end is said by the
// configuration that refers to it.
func roots(name string, b *x509bundle.Bundle) (*deltaxds.Resource, error) {
	return deltaxds.NewResource(name, &tls.Secret{
		Name: name,
		Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(encode(b.X509Authorities()))}},
	})
}

func encode(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return out.Bytes()
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}
