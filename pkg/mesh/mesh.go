// Package mesh holds the names and numbers that every part of Bulwark agrees on; ARCHITECTURE.md lists them.
package mesh

import "time"

// Namespace is where the control plane runs; it is also the root namespace whose policies hold mesh-wide.
const Namespace = "bulwark-system"

// DefaultTrustDomain is the SPIFFE trust domain of a mesh that sets none.
const DefaultTrustDomain = "cluster.local"

// ClusterDomain is the DNS suffix of Kubernetes services.
const ClusterDomain = "cluster.local"

// Service accounts of the components, which are also the last segment of their SPIFFE IDs.
const (
	PilotAccount    = "bulwark-pilot"
	CitadelAccount  = "bulwark-citadel"
	MixerAccount    = "bulwark-mixer"
	AgentAccount    = "bulwark-agent"
	OperatorAccount = "bulwark-operator"
)

// Ports of the components and of the proxies.
const (
	ProxyAdminPort  = 15000
	OutboundPort    = 15001
	InboundPort     = 15006
	TelemetryPort   = 15011
	XDSPort         = 15012
	CSRPort         = 15012
	BundlePort      = 15013 // SPIFFE bundle endpoint
	MonitoringPort  = 15014
	OperatorPort    = 15016
	WebhookPort     = 15017
	ProxyHealthPort = 15021
	ProxyStatsPort  = 15090
	ProxyUID        = 1337
	ProxyGID        = 1337
	ProverUID       = 1338 // who proves that traffic is redirected: anybody but the proxy, whose own is not
	// Source addresses of the proxy's connections to its own application. That of IPv6 is on the pod's loopback device if redirection has put it there, and is
	// nobody's anywhere else (RFC 4291, 2.5.5.1, deprecates ::/96).
	InboundSourceIPv4 = "127.0.0.6"
	InboundSourceIPv6 = "::6"
)

// What a pod's annotations choose of how its proxy treats requests.
const (
	// PathsAnnotation says what happens to the paths of requests to the pod: by default they arrive as they were sent, and what servers read in
	// different ways is denied where a rule looks at paths; with PathsNormalized all are normalised, rules see them so, and so does the application.
	PathsAnnotation = "bulwark.dev/paths"
	PathsNormalized = "normalized"
	PathsAsSent     = "as-sent"
	// IdleAnnotation is how long a connection or a stream to the pod may say nothing, as a duration ("30m"); without it as long as its ends like.
	IdleAnnotation = "bulwark.dev/idle-timeout"
	// ProxyProtocolAnnotation are the pod's ports, as a list that commas separate, at which load balancers say by the PROXY protocol for whom they connect.
	ProxyProtocolAnnotation = "bulwark.dev/proxy-protocol"
)

// ProxyPorts are those of the proxy in each pod.
var ProxyPorts = []uint32{ProxyAdminPort, OutboundPort, InboundPort, ProxyHealthPort, ProxyStatsPort}

// UpdateDrain is how long a proxy leaves connections open whose listener or filter chain an update has taken away: a Service
// that went or speaks another protocol, plaintext that a mode forbids now. It is no part of a pod's end, where the proxy
// is the last to go.
const UpdateDrain = 10 * time.Minute

// Backdate is how far before the moment of issue a certificate of Citadel's begins to be valid, for nodes whose clocks are
// behind.
const Backdate = 5 * time.Minute

// Token audiences.
const (
	CitadelAudience  = "bulwark.dev/citadel"
	OperatorAudience = "bulwark.dev/operator"
)

// AgentTokenHeader carries the agent's own token beside the pod's token in a CSR call ("Bearer <token>").
const AgentTokenHeader = "bulwark-agent-authorization"

// Objects that Citadel keeps.
const (
	SecretPrefix      = "bulwark."                 // workload Secret: prefix + service account
	SecretType        = "bulwark.dev/key-and-cert" // type of a workload Secret
	CertChainKey      = "cert-chain.pem"
	PrivateKeyKey     = "key.pem"
	RootCertKey       = "root-cert.pem"
	CASecret          = "bulwark-ca"
	CACertKey         = "ca-cert.pem"
	CAKeyKey          = "ca-key.pem"
	TrustBundleConfig = "bulwark-trust-bundle"
	BundleKey         = "bundle.json" // in the trust bundle's ConfigMap beside RootCertKey: the SPIFFE bundle
	PluggedCASecret   = "cacerts"     // an operator's own CA, as Istio has it
	// The ClusterTrustBundle and its signer; a bundle of a signer has the signer's name as its prefix.
	ClusterBundleSigner = "bulwark.dev/mesh"
	ClusterTrustBundle  = "bulwark.dev:mesh:trust-bundle"
	KeySetsConfig       = "bulwark-key-sets"       // by which tokens were verified last; Pilot's
	RevocationsConfig   = "bulwark-revocations"    // identities and certificates that are denied
	SettingsConfig      = "bulwark-settings"       // the values that meshctl install was given
	CitadelLeader       = "bulwark-citadel-leader" // Service of the Citadel that holds the Lease
)

// Labels and annotations.
const (
	SecretsLabel         = "bulwark.dev/secrets"   // on a namespace; "disabled" opts out of workload Secrets
	InjectionLabel       = "bulwark.dev/injection" // on a namespace; "enabled"
	PartOfLabel          = "app.kubernetes.io/part-of"
	PartOfValue          = "bulwark"
	ProxyContainer       = "istio-proxy"
	RedirectContainer    = "bulwark-init"
	RedirectAnnotation   = "bulwark.dev/redirect"   // on a pod whose node's CNI plugin redirects it: redirect.Options, written by injection
	RedirectedAnnotation = "bulwark.dev/redirected" // on a pod whose init container redirects it otherwise than all: the same, for Pilot
	IdentityVolume       = "bulwark-identity"
	CSIDriver            = "csi.bulwark.dev"
	RedirectAttribute    = "redirect" // of a pod's volume; RedirectByCNI has the pod wait for its node's CNI plugin
	RedirectByCNI        = "cni"
	ClassMetadata        = "class" // of a proxy as an xDS node: which of Pilot's layers its pods of the same class have, too, written by injection
	IdentityMountPath    = "/run/bulwark"
	AgentSocket          = "agent.sock"
	AgentClusterName     = "bulwark-agent" // the one static cluster of an Envoy bootstrap
	WorkloadSecretName   = "default"       // SDS name of the workload's own certificate
	RootCASecretName     = "ROOTCA"        // SDS name of the trust bundle
	FieldManager         = "bulwark"
	WebhookConfiguration = "bulwark" // name of both webhook configurations
)

// The node's CNI plugin: how a CNI configuration calls it, which is the name of its program, and the socket of the node where
// one may ask whether it is in the node's CNI configuration.
const (
	CNIPlugin = "bulwark-cni"
	CNISocket = "/run/bulwark-cni/ready.sock"
)

// ServiceHost returns the DNS name of a service of the control plane.
func ServiceHost(name string) string { return name + "." + Namespace + ".svc" }

// PublicRootsPath is the file in a proxy's container with the certificates of the public authorities, where Debian and its like have it.
const PublicRootsPath = "/etc/ssl/certs/ca-certificates.crt"
