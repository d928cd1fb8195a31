package ca

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Secrets are those that a pod's Envoy asks its agent for, by name. It implements deltaxds.Source.
type Secrets map[string]*deltaxds.Resource

// NewSecrets makes secrets of a certificate with its key and of the trust bundle, all in PEM.
func NewSecrets(chain, key, roots []byte) (Secrets, error) {
	own, err := deltaxds.NewResource(mesh.WorkloadSecretName, &tls.Secret{Name: mesh.WorkloadSecretName, Type: &tls.Secret_TlsCertificate{
		TlsCertificate: &tls.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)}}})
	if err != nil {
		return nil, err
	}
	bundle, err := deltaxds.NewResource(mesh.RootCASecretName, &tls.Secret{Name: mesh.RootCASecretName, Type: &tls.Secret_ValidationContext{
		ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(roots)}}})
	if err != nil {
		return nil, err
	}
	return Secrets{own.Name: own, bundle.Name: bundle}, nil
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// Resource implements deltaxds.Source.
func (s Secrets) Resource(url, name string) (*deltaxds.Resource, bool) {
	if url != deltaxds.SecretType {
		return nil, true
	}
	return s[name], true
}

// Wildcard implements deltaxds.Source: there is nothing that is not asked for by name.
func (Secrets) Wildcard(string) ([]string, bool) { return nil, true }

// Subscribed implements deltaxds.Source.
func (Secrets) Subscribed(string, []string, []string) {}
