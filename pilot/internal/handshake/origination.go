package handshake

import (
	"net/netip"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Origination is TLS that a proxy speaks with what is outside of the mesh, or with a Service's application, on behalf of a client that does not. The server's certificate must have one of the names
// that are expected, and be vouched for by the public authorities, or by those of a file. Where only a request says who is asked for, the names are that request's
// (RequestNames).
func Origination(by *registry.ClientTLS, names []string, serverName string) *core.TransportSocket {
	roots := by.CACertificates
	if roots == "" {
		roots = mesh.PublicRootsPath
	}
	validation := &tls.CertificateValidationContext{TrustedCa: file(roots)}
	for _, name := range names {
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tls.SubjectAltNameMatcher{SanType: kindOfName(name), Matcher: envoy.Exact(name)})
	}
	common := &tls.CommonTlsContext{
		TlsParams:             &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3},
		ValidationContextType: &tls.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
	if by.ClientCertificate != "" {
		common.TlsCertificates = []*tls.TlsCertificate{{CertificateChain: file(by.ClientCertificate), PrivateKey: file(by.PrivateKey)}}
	}
	return envoy.TransportSocket("envoy.transport_sockets.tls", &tls.UpstreamTlsContext{CommonTlsContext: common, Sni: serverName, MaxSessionKeys: envoy.U32(0)})
}

// RequestNames have the server asked for by the name that a request has, and its certificate must have that name, where nothing else is expected of it.
func RequestNames(x *compile.External) *core.UpstreamHttpProtocolOptions {
	if x.TLS == nil || x.ServerName() != "" && x.Names() != nil {
		return nil
	}
	return &core.UpstreamHttpProtocolOptions{AutoSni: x.ServerName() == "", AutoSanValidation: x.Names() == nil}
}

func file(name string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: name}}
}

// kindOfName tells the kinds of names in certificates apart by what they look like.
func kindOfName(name string) tls.SubjectAltNameMatcher_SanType {
	if _, err := netip.ParseAddr(name); err == nil {
		return tls.SubjectAltNameMatcher_IP_ADDRESS
	}
	switch {
	case strings.Contains(name, "://"):
		return tls.SubjectAltNameMatcher_URI
	case strings.Contains(name, "@"):
		return tls.SubjectAltNameMatcher_EMAIL
	}
	return tls.SubjectAltNameMatcher_DNS
}
