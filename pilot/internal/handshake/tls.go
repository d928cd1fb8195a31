// Package handshake says how two proxies prove to each other who they are: where certificates come from, and whose each side takes. To which
// connections that belongs is package translate's to say.
package handshake

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// onlyTLS13 sets both ends: an UpstreamTlsContext speaks at most 1.2 unless told otherwise.
func onlyTLS13() *tls.TlsParameters {
	return &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3}
}

// secret names a secret that the agent has for this pod, or that injection has put into the proxy's files.
func secret(name string, way delivery.Way) *tls.SdsSecretConfig {
	if way == delivery.BySecret {
		return secretFromFiles(name)
	}
	return &tls.SdsSecretConfig{Name: name, SdsConfig: &core.ConfigSource{
		ResourceApiVersion: core.ApiVersion_V3, InitialFetchTimeout: envoy.Seconds(0),
		ConfigSourceSpecifier: &core.ConfigSource_ApiConfigSource{ApiConfigSource: &core.ApiConfigSource{
			ApiType: core.ApiConfigSource_DELTA_GRPC, TransportApiVersion: core.ApiVersion_V3,
			GrpcServices: []*core.GrpcService{envoy.GRPCService(mesh.AgentClusterName)}, SetNodeOnFirstMessageOnly: true,
		}},
	}}
}

// commonTLS presents the workload's certificate and takes peers of the trust bundle whose URI is one of sans.
func commonTLS(way delivery.Way, sans []*matcher.StringMatcher, alpn ...string) *tls.CommonTlsContext {
	var names []*tls.SubjectAltNameMatcher
	for _, s := range sans {
		names = append(names, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: s})
	}
	return &tls.CommonTlsContext{
		TlsParams: onlyTLS13(), AlpnProtocols: alpn,
		TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{secret(mesh.WorkloadSecretName, way)},
		ValidationContextType: &tls.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tls.CertificateValidationContext{MatchTypedSubjectAltNames: names},
			ValidationContextSdsSecretConfig: secret(mesh.RootCASecretName, way),
		}},
	}
}

// Downstream demands a certificate of one of the peers. Sessions are not resumed: a resumed one would outlive the bundle
// it was checked with.
func Downstream(way delivery.Way, peers []*matcher.StringMatcher, alpn ...string) *core.TransportSocket {
	return envoy.TransportSocket("envoy.transport_sockets.tls", &tls.DownstreamTlsContext{
		RequireClientCertificate:         envoy.Yes(),
		CommonTlsContext:                 commonTLS(way, peers, alpn...),
		SessionTicketKeysType:            &tls.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		DisableStatefulSessionResumption: true,
	})
}

// Upstream is a mesh client's connection to one service port, whose server must be one of the service's identities.
func Upstream(p *compile.ServicePort, way delivery.Way) *core.TransportSocket {
	return mutual(p.Identities, p.Protocol, istiocompat.SNI(p.Number, "", p.Host), way)
}

// Abroad is a mesh client's connection to a server of the mesh that is outside of the cluster, which must have one of the identities that its ServiceEntry, or a
// rule, names.
func Abroad(x *compile.External, way delivery.Way) *core.TransportSocket {
	return mutual(x.Identities, x.Protocol, istiocompat.SNI(x.Port, "", x.Host), way)
}

// mutual is a mesh client's connection to a server that must have one of some identities.
func mutual(identities []string, speaks protocol.Protocol, sni string, way delivery.Way) *core.TransportSocket {
	var sans []*matcher.StringMatcher
	for _, id := range identities {
		sans = append(sans, envoy.Exact(id))
	}
	if len(sans) == 0 {
		sans = append(sans, envoy.Exact(nobody))
	}
	// The server may know the port by another service that declares nothing, or something else.
	alpn := istiocompat.ALPN
	if speaks == protocol.TCP {
		alpn = istiocompat.ALPNOpaque
	}
	return envoy.TransportSocket("envoy.transport_sockets.tls", &tls.UpstreamTlsContext{
		CommonTlsContext: commonTLS(way, sans, alpn), Sni: sni, MaxSessionKeys: envoy.U32(0),
	})
}
