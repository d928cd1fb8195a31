package handshake

import (
	"path"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// FilesPath is where a proxy whose certificate comes from its account's Secret has it: a projected volume with the Secret's
// entries, and the files of SecretFiles that tell Envoy of them. Kubelet replaces all of it at one stroke, by moving a
// symbolic link, for which Envoy watches the directory.
const FilesPath = "/etc/bulwark/identity"

func fileOf(name string) string { return name + ".json" }

// secretFromFiles names a secret that a file describes.
func secretFromFiles(name string) *tls.SdsSecretConfig {
	return &tls.SdsSecretConfig{Name: name, SdsConfig: &core.ConfigSource{
		ResourceApiVersion: core.ApiVersion_V3, InitialFetchTimeout: envoy.Seconds(0),
		ConfigSourceSpecifier: &core.ConfigSource_PathConfigSource{PathConfigSource: &core.PathConfigSource{
			Path: path.Join(FilesPath, fileOf(name)), WatchedDirectory: watched()}},
	}}
}

func watched() *core.WatchedDirectory { return &core.WatchedDirectory{Path: FilesPath} }

// SecretFiles are the files, by name, that describe the certificate and the trust bundle to Envoy.
func SecretFiles() map[string]*discovery.DiscoveryResponse {
	file := func(entry string) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path.Join(FilesPath, entry)}}
	}
	describe := func(s *tls.Secret) *discovery.DiscoveryResponse {
		return &discovery.DiscoveryResponse{Resources: []*anypb.Any{envoy.Typed(s)}}
	}
	return map[string]*discovery.DiscoveryResponse{
		fileOf(mesh.WorkloadSecretName): describe(&tls.Secret{Name: mesh.WorkloadSecretName, Type: &tls.Secret_TlsCertificate{
			TlsCertificate: &tls.TlsCertificate{CertificateChain: file(mesh.CertChainKey), PrivateKey: file(mesh.PrivateKeyKey), WatchedDirectory: watched()}}}),
		fileOf(mesh.RootCASecretName): describe(&tls.Secret{Name: mesh.RootCASecretName, Type: &tls.Secret_ValidationContext{
			ValidationContext: &tls.CertificateValidationContext{TrustedCa: file(mesh.RootCertKey), WatchedDirectory: watched()}}}),
	}
}
