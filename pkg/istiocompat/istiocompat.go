// Package istiocompat holds the names that Bulwark uses only because the tools of the Istio ecosystem read them.
package istiocompat

import "fmt"

// Labels and annotations of injected pods and of namespaces.
const (
	InjectionLabel         = "istio-injection"           // on a namespace; "enabled"
	PodInjectionLabel      = "sidecar.istio.io/inject"   // on a pod; "true" or "false"
	StatusAnnotation       = "sidecar.istio.io/status"   // on a pod: what injection added, JSON
	TLSModeLabel           = "security.istio.io/tlsMode" // on a pod with a proxy; "istio"
	TLSModeMutual          = "istio"
	CanonicalNameLabel     = "service.istio.io/canonical-name"
	CanonicalRevisionLabel = "service.istio.io/canonical-revision"
	DryRunAnnotation       = "istio.io/dry-run"             // on an AuthorizationPolicy; "true"
	ExportToAnnotation     = "networking.istio.io/exportTo" // on a Service: namespaces, or ".", "*", "~"
)

// ALPN is the protocol name by which a mesh proxy marks its TLS connections, so that an inbound proxy can tell them
// from an application's own TLS.
const ALPN = "istio"

// ALPNOpaque marks a connection whose bytes the client's proxy took for something else than HTTP.
const ALPNOpaque = "istio-opaque"

// PassthroughCluster names the cluster for what leaves the mesh, or goes to nobody's address in it.
const PassthroughCluster = "PassthroughCluster"

// OutboundCluster names the cluster of a service's port, in any subset ("" for none).
func OutboundCluster(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, host)
}

// InboundCluster names the cluster of a workload's own port.
func InboundCluster(port uint32) string { return fmt.Sprintf("inbound|%d||", port) }

// SNI is the server name a mesh client sends for a service's port.
func SNI(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound_.%d_.%s_.%s", port, subset, host)
}

// PolicyRule names one rule of an AuthorizationPolicy in Envoy's RBAC.
func PolicyRule(namespace, name string, rule int) string {
	return fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", namespace, name, rule)
}

// CustomRule names a rule, as PolicyRule does, of which an external authorizer is asked.
func CustomRule(provider, rule string) string { return CustomRules + provider + "-" + rule }

// CustomRules is how the names of such rules begin, and CustomPrefix how what Envoy notes of them in dynamic metadata does.
const (
	CustomRules  = "istio-ext-authz-"
	CustomPrefix = "istio_ext_authz_"
)
