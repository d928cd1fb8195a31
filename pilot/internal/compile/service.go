// Package compile works out, from a snapshot of the registry, what each service and each kind of workload needs of the
// proxies: who may serve a service, how its endpoints are reached, what an inbound port takes and which policies hold.
// Everything here is a function of a snapshot; internal/translate turns the results into Envoy's words.
package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Settings are the few things a mesh chooses.
type Settings struct {
	TrustDomain        string
	TrustDomainAliases []string // under which identities are the same, too
	RootNamespace      string
	TrustedProxies     int                   // before workloads; see authz.Options
	LoadBalancers      []netip.Prefix        // see authz.Options
	Authorizers        []authorizer.Provider // see authz.Options
}

// SettingsOf are the settings that go with the options by which policies are read.
func SettingsOf(o authz.Options) Settings {
	return Settings{TrustDomain: o.TrustDomain, TrustDomainAliases: o.TrustDomainAliases, RootNamespace: o.RootNamespace, TrustedProxies: o.TrustedProxies, LoadBalancers: o.LoadBalancers, Authorizers: o.Authorizers}
}

// TrustDomains returns the mesh's trust domain and its aliases.
func (s Settings) TrustDomains() []string {
	return append([]string{s.TrustDomain}, s.TrustDomainAliases...)
}

// Asks reports whether a Service ("namespace/name") is an external authorizer's. Every proxy has it, whatever narrows others.
func (s Settings) Asks(service string) bool {
	return slices.ContainsFunc(s.Authorizers, func(p authorizer.Provider) bool { return p.Service == service })
}

// protocolAt is what the port of a Service speaks: what it is declared to, or else what the settings say of it, if an external authorizer is there.
func (s Settings) protocolAt(service string, p registry.ServicePort) protocol.Protocol {
	if p.Protocol == protocol.Auto {
		for _, a := range s.Authorizers {
			switch {
			case a.Service != service || a.Port != p.Number:
			case a.GRPC:
				return protocol.HTTP2
			default:
				return protocol.HTTP
			}
		}
	}
	return p.Protocol
}

// URIs are the SPIFFE URIs of a service account, one for each trust domain of the mesh; none if it can have no identity.
func (s Settings) URIs(namespace, account string) []string {
	var out []string
	for _, td := range s.TrustDomains() {
		if id, err := spiffe.New(td, namespace, account); err == nil {
			out = append(out, id.String())
		}
	}
	return out
}

// Same are the URIs under which the mesh knows an identity: one of its own under each of its trust domains, another as it is.
func (s Settings) Same(uri string) []string {
	id, err := spiffe.Parse(uri)
	if err != nil || !slices.Contains(s.TrustDomains(), id.TrustDomain) {
		return []string{uri}
	}
	return s.URIs(id.Namespace, id.ServiceAccount)
}

// revoked reports whether an identity is, under any of its names.
func (s Settings) revoked(snap *registry.Snapshot, uri string) bool {
	return slices.ContainsFunc(s.Same(uri), snap.Revoked)
}

// Revocations are all that are in force, in an order that is always the same.
func Revocations(snap *registry.Snapshot) (out []revocation.Revocation) {
	for r := range snap.Revocations() {
		out = append(out, r.Revocation)
	}
	return out
}

// ServicePort is one port of a service as its clients see it.
type ServicePort struct {
	Service  *registry.Service
	Host     string
	Number   uint32
	Family   registry.Family // of the address that clients call, and so of those who answer
	Protocol protocol.Protocol
	// Mutual says that endpoints are reached by mutual TLS unless marked plain. Without it no endpoint has a proxy.
	Mutual bool
	// Always says that so are those that are marked plain: a DestinationRule asks for it.
	Always bool
	// TLS is how proxies speak TLS with its applications themselves, for clients who do not, where a DestinationRule asks for it. Nil: they do not.
	TLS *registry.ClientTLS
	// Sticky says that a client stays with its endpoint.
	Sticky bool
	// Identities are the SPIFFE URIs that may serve the service, without those that are revoked. (A single certificate of
	// one that is revoked still serves: Envoy could refuse it only by a CRL, which is the CA's to sign.) Empty with Mutual set: nobody may.
	Identities []string
}

// Cluster returns the name of the port's Envoy cluster, which is another one where proxies speak TLS with applications, as HostPort's is.
func (p *ServicePort) Cluster() string {
	subset := Subset(p.Family)
	switch {
	case p.TLS == nil:
	case subset == "":
		subset = secured
	default:
		subset = secured + "-" + subset
	}
	return istiocompat.OutboundCluster(p.Number, subset, p.Host)
}

// Meshed is the port as the mesh speaks with it by itself.
func (p *ServicePort) Meshed() *ServicePort {
	out := *p
	out.TLS = nil
	return &out
}

// Names are those of which the application's certificate has to have one, where proxies speak TLS with it: those of the Service by which clients know it in every
// namespace, if a rule names no others.
func (p *ServicePort) Names() []string {
	if len(p.TLS.SubjectAltNames) > 0 {
		return p.TLS.SubjectAltNames
	}
	return []string{p.Host, strings.TrimSuffix(p.Host, "."+mesh.ClusterDomain)}
}

// ServerName is that for which the application is asked.
func (p *ServicePort) ServerName() string { return cmp.Or(p.TLS.ServerName, p.Host) }

// Subset is what the names of clusters say of the family: kube-proxy hands a connection to endpoints of the family in which it came, and an application may listen
// in one alone, so a service port is a cluster for each.
func Subset(f registry.Family) string {
	if f == registry.IPv6 {
		return "ipv6"
	}
	return ""
}

// Host returns the DNS name of a service.
func Host(s *registry.Service) string { return host(s.Name, s.Namespace) }

// HostOf returns the DNS name of a service by its ID, "namespace/name", whether there is one or not.
func HostOf(service string) string {
	namespace, name, _ := strings.Cut(service, "/")
	return host(name, namespace)
}

// serviceOf is the ID of the Service that a name may be of.
func serviceOf(host string) (id string, ok bool) {
	if !registry.IsService(host) {
		return "", false
	}
	name, rest, _ := strings.Cut(host, ".")
	namespace, _, _ := strings.Cut(rest, ".")
	return namespace + "/" + name, true
}

func host(name, namespace string) string {
	return name + "." + namespace + ".svc." + mesh.ClusterDomain
}

// ServicePorts compiles the ports of a service, each once for a family.
func ServicePorts(snap *registry.Snapshot, set Settings, s *registry.Service) []ServicePort {
	n := nameService(snap, set, s)
	families := s.Families()
	out := make([]ServicePort, 0, len(s.Ports)*len(families))
	for _, p := range s.Ports {
		for _, f := range families {
			out = append(out, ServicePort{Service: s, Host: Host(s), Number: p.Number, Family: f, Protocol: set.protocolAt(s.ID, p),
				Sticky: s.Affinity != 0 && !s.Headless, Mutual: n.mutual, Identities: n.identities})
		}
	}
	return out
}

// PortOf compiles the port of a service that has a number, in a family, or returns nil.
func PortOf(snap *registry.Snapshot, set Settings, s *registry.Service, number uint32, f registry.Family) *ServicePort {
	ports := ServicePorts(snap, set, s)
	if i := slices.IndexFunc(ports, func(p ServicePort) bool { return p.Number == number && p.Family == f }); i >= 0 {
		return &ports[i]
	}
	return nil
}

// naming is what is known of the pods behind a service.
type naming struct {
	pods       map[string]*registry.Pod // by address: those that may stand behind the service
	identities []string
	mutual     bool
}

// nameService is secure naming. A service with a selector is served by the accounts of the pods it selects, whatever its
// EndpointSlices say: who may write a slice must not gain the service's name. A service without a selector has only its
// slices to go by.
func nameService(snap *registry.Snapshot, set Settings, s *registry.Service) naming {
	n := naming{pods: map[string]*registry.Pod{}}
	names := map[string]bool{}
	add := func(p *registry.Pod) {
		for _, ip := range p.IPs {
			n.pods[ip] = p
		}
		n.mutual = n.mutual || p.Proxied
		for _, uri := range set.URIs(p.Namespace, p.ServiceAccount) {
			names[uri] = true
		}
	}
	if len(s.Selector) > 0 {
		for p := range snap.PodsSelected(s.Namespace, s.Selector) {
			add(p)
		}
		if len(n.pods) == 0 {
			n.mutual = true // whatever address is offered is nobody the service selects
		}
	} else {
		for slice := range snap.SlicesOf(s.ID) {
			for _, e := range slice.Endpoints {
				if p := snap.PodAt(e.Address); p != nil {
					add(p)
				}
			}
		}
	}
	for uri := range names {
		if set.revoked(snap, uri) {
			delete(names, uri)
		}
	}
	n.identities = slices.Sorted(maps.Keys(names))
	return n
}

// Endpoint is an address of a service port.
type Endpoint struct {
	Address  string
	Port     uint32
	Plain    bool // reached without TLS
	Workload Labels
}

// Labels are what metrics say about a workload.
type Labels struct {
	Workload, Namespace, CanonicalName, CanonicalRevision, Principal string
}

// Candidates compiles the addresses of one service port that are of a family, of which Nearest says whom clients are sent to.
func Candidates(snap *registry.Snapshot, set Settings, s *registry.Service, port uint32, f registry.Family) []Candidate {
	i := slices.IndexFunc(s.Ports, func(p registry.ServicePort) bool { return p.Number == port })
	if i < 0 {
		return nil
	}
	n := nameService(snap, set, s)
	peers := peerPolicies(snap, set, s.Namespace)
	modes := map[string]authz.PeerModes{}
	seen := map[string]int{}
	var out []Candidate
	for slice := range snap.SlicesOf(s.ID) {
		number := slicePort(slice, s.Ports[i].Name)
		if number == 0 || slice.Family != f {
			continue
		}
		for _, e := range slice.Endpoints {
			if !e.Ready && !e.Leaving {
				continue
			}
			if at, ok := seen[e.Address]; ok { // it moves from one slice to another
				if e.Ready && !out[at].slice.Ready {
					out[at].slice = e
				}
				continue
			}
			seen[e.Address] = len(out)
			ep := Endpoint{Address: e.Address, Port: number, Plain: !n.mutual}
			if p := n.pods[e.Address]; p != nil {
				ep.Workload = LabelsOf(set, p)
				m, ok := modes[p.ID]
				if !ok {
					m = authz.ComposePeer(peers, set.RootNamespace, p.Namespace, p.Labels)
					modes[p.ID] = m
				}
				ep.Plain = ep.Plain || !p.Serves(number) || m.Mode(number) == authz.Disable
			}
			out = append(out, Candidate{ep, e})
		}
	}
	slices.SortFunc(out, func(a, b Candidate) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

func slicePort(s *registry.Slice, name string) uint32 {
	for _, p := range s.Ports {
		if p.Name == name {
			return p.Number
		}
	}
	return 0
}

// LabelsOf names a pod's workload for metrics. The workload is taken from the canonical name: its owner would need reads
// of ReplicaSets.
func LabelsOf(set Settings, p *registry.Pod) Labels {
	l := Labels{Namespace: p.Namespace, CanonicalName: CanonicalName(p.Labels, p.Name), CanonicalRevision: CanonicalRevision(p.Labels)}
	l.Workload = l.CanonicalName
	if id, err := spiffe.New(set.TrustDomain, p.Namespace, p.ServiceAccount); err == nil && p.Proxied {
		l.Principal = id.String()
	}
	return l
}

// CanonicalName is Istio's name of the service a workload belongs to.
func CanonicalName(labels map[string]string, fallback string) string {
	for _, k := range []string{istiocompat.CanonicalNameLabel, "app.kubernetes.io/name", "app"} {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return fallback
}

// CanonicalRevision is Istio's name of a workload's version.
func CanonicalRevision(labels map[string]string) string {
	for _, k := range []string{istiocompat.CanonicalRevisionLabel, "app.kubernetes.io/version", "version"} {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return "latest"
}
