// Package registry holds what Pilot knows of the cluster: an in-memory database with immutable snapshots, fed by informers.
// Objects are kept in a small form of our own, so that what is not used costs nothing and changes nothing.
package registry

import (
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Kind is a table.
type Kind string

// The tables.
const (
	Services   Kind = "service"
	Slices     Kind = "slice"
	Pods       Kind = "pod"
	Namespaces Kind = "namespace"
	Policies   Kind = "policy" // AuthorizationPolicy
	PeerAuths  Kind = "peer"   // PeerAuthentication
	JWTRules   Kind = "jwt"    // RequestAuthentication

	Revocations Kind = "revocation"
)

var kinds = []Kind{Services, Slices, Pods, Namespaces, Policies, PeerAuths, JWTRules, Revocations}

// Service is a Kubernetes Service.
type Service struct {
	ID              string // namespace/name
	Namespace, Name string
	ClusterIPs      []string
	Headless        bool
	Selector        map[string]string
	Ports           []ServicePort
	Created         time.Time
}

// HasPort reports whether it has a port of the number.
func (s *Service) HasPort(number uint32) bool {
	return slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Number == number })
}

// ServicePort is a TCP port of a Service.
type ServicePort struct {
	Name        string
	Number      uint32
	Target      uint32 // number of the workload's port, or zero
	TargetName  string // name of the workload's port, or empty
	Protocol    Protocol
	ServerFirst bool
}

// Slice is an EndpointSlice.
type Slice struct {
	ID              string
	Namespace, Name string
	ServiceID       string // namespace/name
	Ports           []SlicePort
	Endpoints       []Endpoint
	Addresses       []string // all, for the index
}

// SlicePort is a port of a slice; Name is the Service port's.
type SlicePort struct {
	Name   string
	Number uint32
}

// Endpoint is one address of a slice.
type Endpoint struct {
	Address string
	Ready   bool // or it is terminating and still serves, and nothing better is there
}

// Pod is a pod that has not ended.
type Pod struct {
	ID              string
	Namespace, Name string
	UID             string
	IP              string
	Node            string
	ServiceAccount  string
	Labels          map[string]string
	Ports           []PodPort
	Proxied         bool   // label security.istio.io/tlsMode says it has a proxy
	HostNetwork     bool   // its address is its node's
	Probes          string // annotation written by injection
	Delivery        Delivery
}

// Delivery is how a pod's proxy gets its certificate.
type Delivery string

// The ways, as injection writes them down in annotation IdentityLabel.
const (
	ByAgent  Delivery = ""       // over the pod's socket
	BySecret Delivery = "secret" // from the account's Secret, mounted into the proxy
)

// IdentityLabel, on a namespace or a pod, chooses the way: "agent" or "secret". The pod's own goes first.
const IdentityLabel = "bulwark.dev/identity"

// PodPort is a declared container port.
type PodPort struct {
	Name   string
	Number uint32
}

// Namespace is a namespace.
type Namespace struct {
	ID     string
	Labels map[string]string
}

// Policy is an AuthorizationPolicy, compiled, with what of it cannot be enforced.
type Policy struct {
	ID        string
	Namespace string
	authz.Policy
	Generation int64
	Problems   []authz.Problem
}

// PeerAuth is a PeerAuthentication, compiled.
type PeerAuth struct {
	ID        string
	Namespace string
	authz.PeerPolicy
	Generation int64
	Problems   []authz.Problem
}

// JWTRule stands for a RequestAuthentication: requests to the workloads it selects cannot be authenticated yet.
type JWTRule struct {
	ID         string
	Namespace  string
	Selector   map[string]string
	Generation int64
	Problems   []authz.Problem
}
