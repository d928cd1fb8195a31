package registry

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
	istio "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// ServiceEntries are Istio's ServiceEntries: what workloads call that is outside of the mesh, by names.
var ServiceEntries = &KindOf[ServiceEntry]{
	name:     "serviceEntry",
	resource: Resource{GroupVersionResource: istioNetworking.WithResource("serviceentries"), Kind: "ServiceEntry"},
	source:   custom(makeServiceEntry),
	indexes: []*memdb.IndexSchema{byNamespace, byEach("address", "Addresses"), {Name: "networked", Indexer: &memdb.ConditionalIndex{
		Conditional: func(e any) (bool, error) { return len(e.(*ServiceEntry).Networks) > 0, nil }}}},
	judge: func(e *ServiceEntry) Verdict {
		v := verdictOn(e.ID, e.Generation, e.Ignored, e.Problems)
		v.Partly = !e.Ignored
		return v
	},
	advise:    adviseServiceEntry,
	uncounted: true,
}

// ServiceEntry names what is outside of the mesh. One with problems holds for nobody, but for those of exportTo: it holds for whom it may.
type ServiceEntry struct {
	ID              string
	Namespace, Name string
	Hosts           []string       // DNS names in lower case, of which the first part may be "*"
	Addresses       []string       // that are the host's, whatever DNS says; then there is one host
	Networks        []netip.Prefix // of which all addresses are so, too
	Ports           []EntryPort
	Internal        bool // its servers have an identity of the mesh: one of SubjectAltNames, which are SPIFFE IDs then, or of an endpoint's account
	Resolution      Resolution
	Endpoints       []EntryEndpoint // none: with DNS, the hosts themselves are
	SubjectAltNames []string        // of which a server's certificate has to have one, where proxies speak TLS with it
	ExportTo        []string        // names of namespaces, or "*", "."; nil: nothing is said
	Created         time.Time
	Ignored         bool // it holds for nobody
	Generation      int64
	Problems        []authz.Problem
}

// EntryPort is a port of a ServiceEntry.
type EntryPort struct {
	Number   uint32
	Name     string
	Protocol protocol.Protocol // HTTP, HTTP2 or TCP
	TLS      bool              // clients speak TLS themselves, in which their proxies see the name that they ask for
	Target   uint32            // the servers' port
}

// Named reports whether a client's first bytes say which host it wants.
func (p EntryPort) Named() bool { return p.TLS || p.Protocol.IsHTTP() }

// Resolution says how a proxy finds the servers of a host.
type Resolution string

// The resolutions. With None a connection goes to the address to which its client has opened it, and with RoundRobin to the first one that DNS has at the time, of which
// those that are open do not depend.
const (
	None   Resolution = "NONE"
	Static Resolution = "STATIC"
	DNS    Resolution = "DNS"

	RoundRobin Resolution = "DNS_ROUND_ROBIN"
)

// EntryEndpoint is a server.
type EntryEndpoint struct {
	Address string // an IP address or, with DNS, maybe a name
	Ports   map[string]uint32
	Weight  uint32 // as the share of its servers; at least 1
	Account string // its service account in the ServiceEntry's namespace, or empty
}

// Port is where the endpoint serves a port.
func (e EntryEndpoint) Port(p EntryPort) uint32 {
	if n, ok := e.Ports[p.Name]; ok {
		return n
	}
	return p.Target
}

// Bounds of a ServiceEntry. Proxies have all hosts of a port in one table.
const (
	maxEntryHosts     = 100
	maxEntryAddresses = 100
	maxEntryPorts     = 30
	maxEntryEndpoints = 500
	maxEntryNames     = 100
)

const maxPort = 65535

const notYet = "is not supported yet"

// makeServiceEntry reads a ServiceEntry.
func makeServiceEntry(u *unstructured.Unstructured, o authz.Options) *ServiceEntry {
	out := &ServiceEntry{ID: IDOf(u), Namespace: u.GetNamespace(), Name: u.GetName(), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().UTC()}
	spec := &istio.ServiceEntry{}
	if out.Problems = decodeSpec(u, spec); out.Problems != nil {
		out.Ignored = true
		return out
	}
	r := &entryReader{spec: spec, out: out}
	out.Problems = append(notTriedOut(u), fieldsBut("spec", spec, notYet, "hosts", "addresses", "ports", "location", "resolution", "endpoints", "exportTo", "subjectAltNames")...)
	r.location()
	r.resolution()
	r.hosts()
	r.addresses()
	r.ports()
	r.endpoints()
	r.names()
	r.identities(o.TrustDomain)
	out.ExportTo = spec.ExportTo
	out.Ignored = len(out.Problems) > 0 || slices.Contains(out.ExportTo, "~")
	out.Problems = append(out.Problems, foreign(out.ExportTo, out.Namespace, o.RootNamespace)...)
	return out
}

// entryReader reads a ServiceEntry's spec, and notes what is wrong with it.
type entryReader struct {
	spec *istio.ServiceEntry
	out  *ServiceEntry
}

func (r *entryReader) problem(field, format string, args ...any) {
	r.out.Problems = append(r.out.Problems, authz.Problem{Field: field, Reason: fmt.Sprintf(format, args...)})
}

// bounded reports whether a list has no more than some, and says so if it has.
func (r *entryReader) bounded(field string, n, most int) bool {
	if n > most {
		r.problem(field, "has more than %d elements; write several ServiceEntries", most)
	}
	return n <= most
}

func (r *entryReader) location() {
	switch r.spec.Location {
	case istio.ServiceEntry_MESH_EXTERNAL:
	case istio.ServiceEntry_MESH_INTERNAL:
		r.out.Internal = true
	default:
		r.problem("spec.location", "%s "+notYet+"; use MESH_EXTERNAL or MESH_INTERNAL", r.spec.Location)
	}
}

// identities demands that servers of the mesh have some: who may be anybody proves nothing.
func (r *entryReader) identities(trustDomain string) {
	for i, e := range r.spec.Endpoints {
		field := fmt.Sprintf("spec.endpoints[%d].serviceAccount", i)
		switch {
		case e.GetServiceAccount() == "" && (!r.out.Internal || len(r.spec.SubjectAltNames) > 0):
		case !r.out.Internal:
			r.problem(field, "means nothing with location MESH_EXTERNAL; who has an account of the mesh is MESH_INTERNAL")
		case e.GetServiceAccount() == "":
			r.problem(field, "is missing: a server of the mesh proves who it is; name its account, or what it may be in spec.subjectAltNames (spiffe://%s/ns/%s/sa/NAME); what has no identity of the mesh is MESH_EXTERNAL", trustDomain, r.out.Namespace)
		case e.GetServiceAccount() != "" && len(validation.IsDNS1123Subdomain(e.GetServiceAccount())) > 0:
			r.problem(field, "%q is no name of a service account", e.GetServiceAccount())
		}
	}
	if !r.out.Internal {
		return
	}
	if len(r.spec.SubjectAltNames) == 0 && len(r.spec.Endpoints) == 0 {
		r.problem("spec.subjectAltNames", "there are none: with MESH_INTERNAL, a server proves that it is one of the mesh by its identity (spiffe://%s/ns/%s/sa/NAME); what has none is MESH_EXTERNAL, and a DestinationRule has proxies speak TLS with it",
			trustDomain, r.out.Namespace)
	}
	r.out.Problems = append(r.out.Problems, notIdentities("spec.subjectAltNames", r.spec.SubjectAltNames)...)
}

func (r *entryReader) resolution() {
	switch r.spec.Resolution {
	case istio.ServiceEntry_NONE:
		r.out.Resolution = None
	case istio.ServiceEntry_STATIC:
		r.out.Resolution = Static
	case istio.ServiceEntry_DNS:
		r.out.Resolution = DNS
	case istio.ServiceEntry_DNS_ROUND_ROBIN:
		r.out.Resolution = RoundRobin
		if len(r.spec.Endpoints) > 1 {
			r.problem("spec.endpoints", "with DNS_ROUND_ROBIN there is one name, whose addresses are the servers; use DNS for several endpoints")
		}
	default:
		r.problem("spec.resolution", "%s "+notYet+"; use NONE, STATIC, DNS or DNS_ROUND_ROBIN", r.spec.Resolution)
	}
}

func (r *entryReader) hosts() {
	if len(r.spec.Hosts) == 0 {
		r.problem("spec.hosts", "there are none")
	}
	if !r.bounded("spec.hosts", len(r.spec.Hosts), maxEntryHosts) {
		return
	}
	for i, h := range r.spec.Hosts {
		field := fmt.Sprintf("spec.hosts[%d]", i)
		switch reason := notOutside(h); {
		case reason != "":
			r.problem(field, "%q %s", h, reason)
		case slices.Contains(r.out.Hosts, h):
			r.problem(field, "%q stands there twice", h)
		case isWildcard(h) && r.spec.Resolution != istio.ServiceEntry_NONE:
			r.problem(field, "%q: with a wildcard, only resolution NONE says where a connection goes", h)
		default:
			r.out.Hosts = append(r.out.Hosts, h)
		}
	}
}

func isWildcard(host string) bool { return strings.HasPrefix(host, "*.") }

func (r *entryReader) addresses() {
	if !r.bounded("spec.addresses", len(r.spec.Addresses), maxEntryAddresses) {
		return
	}
	for i, text := range r.spec.Addresses {
		field := fmt.Sprintf("spec.addresses[%d]", i)
		if strings.Contains(text, "/") {
			r.network(field, text)
			continue
		}
		if reason := notServer(text); reason != "" {
			r.problem(field, "%q %s", text, reason)
			continue
		}
		r.out.Addresses = append(r.out.Addresses, canonical(text))
	}
	if len(r.out.Networks) > 0 && r.spec.Resolution != istio.ServiceEntry_NONE && r.spec.Resolution != istio.ServiceEntry_STATIC {
		r.problem("spec.addresses", "a network has many servers: with resolution NONE a connection goes to the one whom its client has called, with STATIC to spec.endpoints")
	}
	if len(r.spec.Addresses) > 0 && (len(r.spec.Hosts) != 1 || isWildcard(r.spec.Hosts[0])) {
		r.problem("spec.addresses", "an address is one host's: write a ServiceEntry with one host, and no wildcard, for each")
	}
}

// network reads a network, which of one address is that address.
func (r *entryReader) network(field, text string) {
	p, err := netip.ParsePrefix(text)
	switch reason := notServers(p.Masked()); {
	case err != nil || p.Addr().Is4In6():
		r.problem(field, "%q is no network, such as 203.0.113.0/24", text)
	case reason != "":
		r.problem(field, "%q %s", text, reason)
	case p.IsSingleIP():
		r.out.Addresses = append(r.out.Addresses, p.Addr().String())
	case !slices.Contains(r.out.Networks, p.Masked()):
		r.out.Networks = append(r.out.Networks, p.Masked())
	}
}

func (r *entryReader) ports() {
	if len(r.spec.Ports) == 0 {
		r.problem("spec.ports", "there are none")
	}
	if !r.bounded("spec.ports", len(r.spec.Ports), maxEntryPorts) {
		return
	}
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range r.spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		port := EntryPort{Number: p.GetNumber(), Name: p.GetName(), Target: p.GetTargetPort()}
		if port.Target == 0 {
			port.Target = port.Number
		}
		if port.Number == 0 || port.Number > maxPort {
			r.problem(field+".number", "%d is no port", port.Number)
		}
		if port.Target > maxPort {
			r.problem(field+".targetPort", "%d is no port", port.Target)
		}
		if slices.Contains(mesh.ProxyPorts, port.Number) {
			r.problem(field+".number", "%d is a port of the proxies themselves", port.Number)
		}
		if port.Name == "" {
			r.problem(field+".name", "is missing")
		}
		if names[port.Name] || numbers[port.Number] {
			r.problem(field, "another port has the same name or number")
		}
		names[port.Name], numbers[port.Number] = true, true
		speaks := strings.ToLower(p.GetProtocol())
		switch port.Protocol = protocol.Of(speaks, port.Name, port.Number); {
		case port.Protocol == protocol.Auto:
			r.problem(field+".protocol", "%q: say what it speaks, such as HTTP, HTTP2, GRPC, TLS or TCP", p.GetProtocol())
		case speaks == "https" || speaks == "tls" || speaks == "" && (protocol.Named("https", port.Name) || protocol.Named("tls", port.Name)):
			port.TLS = true
		case !port.Protocol.IsHTTP() && len(r.spec.Addresses) == 0:
			r.problem(field, "%s says no name, so nothing but addresses (spec.addresses) tells its connections from others; without them they pass as they are", port.Protocol)
		}
		r.out.Ports = append(r.out.Ports, port)
	}
}

func (r *entryReader) endpoints() {
	switch r.spec.Resolution {
	case istio.ServiceEntry_NONE:
		if len(r.spec.Endpoints) > 0 {
			r.problem("spec.endpoints", "with resolution NONE a connection goes where its client opens it; use STATIC or DNS")
		}
		return
	case istio.ServiceEntry_STATIC:
		if len(r.spec.Endpoints) == 0 {
			r.problem("spec.endpoints", "there are none; with resolution STATIC they are the servers")
		}
	}
	if !r.bounded("spec.endpoints", len(r.spec.Endpoints), maxEntryEndpoints) {
		return
	}
	for i, e := range r.spec.Endpoints {
		field := fmt.Sprintf("spec.endpoints[%d]", i)
		r.out.Problems = append(r.out.Problems, fieldsBut(field, e, notYet, "address", "ports", "weight", "serviceAccount")...)
		made := EntryEndpoint{Address: e.GetAddress(), Weight: max(1, e.GetWeight()), Account: e.GetServiceAccount()}
		_, notIP := netip.ParseAddr(made.Address)
		reason := ""
		switch {
		case notIP == nil:
			reason = notServer(made.Address)
			made.Address = canonical(made.Address)
		case r.spec.Resolution == istio.ServiceEntry_STATIC:
			reason = "is no IP address; use resolution DNS"
		default:
			if reason = notOutside(made.Address); isWildcard(made.Address) {
				reason = "is a wildcard"
			}
		}
		if reason != "" {
			r.problem(field+".address", "%q %s", e.GetAddress(), reason)
		}
		for _, name := range slices.Sorted(maps.Keys(e.GetPorts())) {
			number := e.GetPorts()[name]
			if number == 0 || number > maxPort || !slices.ContainsFunc(r.spec.Ports, func(p *istio.ServicePort) bool { return p.GetName() == name }) {
				r.problem(field+".ports", "%q: %d is no port's name and number", name, number)
				continue
			}
			if made.Ports == nil {
				made.Ports = map[string]uint32{}
			}
			made.Ports[name] = number
		}
		if made.Weight > maxWeight {
			r.problem(field+".weight", "is more than %d", maxWeight)
		}
		r.out.Endpoints = append(r.out.Endpoints, made)
	}
}

// maxWeight keeps the sum of all weights, which Envoy bounds, in bounds.
const maxWeight = 1 << 20

func (r *entryReader) names() {
	if r.bounded("spec.subjectAltNames", len(r.spec.SubjectAltNames), maxEntryNames) {
		r.out.SubjectAltNames = r.spec.SubjectAltNames
	}
	r.out.Problems = append(r.out.Problems, badNames("spec.subjectAltNames", r.spec.SubjectAltNames)...)
}

// badNames are the problems of names that a certificate may have: printable, and without wildcards, which would be compared as they are.
func badNames(field string, names []string) (out []authz.Problem) {
	for i, n := range names {
		if n == "" || len(n) > 2048 || strings.ContainsFunc(n, func(c rune) bool { return c <= ' ' || c > '~' || c == '*' }) {
			out = append(out, authz.Problem{Field: fmt.Sprintf("%s[%d]", field, i), Reason: fmt.Sprintf("%q is no name of a certificate; it is compared as a whole, and has no wildcards", n)})
		}
	}
	return out
}

// foreign are the problems of an exportTo by which the owner of a namespace would answer for the calls of others. Only what is in the root namespace holds there.
func foreign(exportTo []string, own, root string) (out []authz.Problem) {
	for i, ns := range exportTo {
		field := fmt.Sprintf("spec.exportTo[%d]", i)
		switch {
		case ns == "~":
			out = append(out, authz.Problem{Field: field, Reason: `"~" would have it hold for nobody; delete the ServiceEntry`})
		case ns != "*" && ns != "." && len(validation.IsDNS1123Label(ns)) > 0:
			out = append(out, authz.Problem{Field: field, Reason: fmt.Sprintf("%q is no namespace, nor one of . *", ns)})
		case own != root && ns != "." && ns != own:
			out = append(out, authz.Problem{Field: field, Reason: fmt.Sprintf("%q: what workloads of other namespaces call is not for namespace %s to say; put it into %s", ns, own, root)})
		}
	}
	return out
}

// adviseServiceEntry says what of a ServiceEntry may not be meant as it is written.
func adviseServiceEntry(e *ServiceEntry) (out []string) {
	if len(e.SubjectAltNames) > 0 && !e.Internal {
		out = append(out, "spec.subjectAltNames are asked for where a DestinationRule has proxies speak TLS with the host (mode SIMPLE or MUTUAL), and nowhere else")
	}
	if len(e.ExportTo) == 0 {
		out = append(out, "spec.exportTo: without it, it holds in its own namespace, and one of the root namespace in all; in Istio it holds in all")
	}
	for i, p := range e.Ports {
		if p.TLS && p.Target != p.Number && e.Resolution == None {
			out = append(out, fmt.Sprintf("spec.ports[%d].targetPort: connections go to port %d of the address that their client opened", i, p.Target))
		}
	}
	return out
}

// ServiceEntries returns every ServiceEntry.
func (s *Snapshot) ServiceEntries() iter.Seq[*ServiceEntry] { return ServiceEntries.all(s, byID.Name) }

// ServiceEntriesIn returns a namespace's ServiceEntries.
func (s *Snapshot) ServiceEntriesIn(ns string) iter.Seq[*ServiceEntry] {
	return ServiceEntries.all(s, byNamespace.Name, ns)
}

// ServiceEntriesAt returns the ServiceEntries that claim an address, or a network that it is in.
func (s *Snapshot) ServiceEntriesAt(address string) iter.Seq[*ServiceEntry] {
	return func(yield func(*ServiceEntry) bool) {
		for e := range ServiceEntries.all(s, "address", address) {
			if !yield(e) {
				return
			}
		}
		a, err := netip.ParseAddr(address)
		if err != nil {
			return
		}
		for e := range ServiceEntries.all(s, "networked", true) {
			if slices.ContainsFunc(e.Networks, func(p netip.Prefix) bool { return p.Contains(a) }) && !yield(e) {
				return
			}
		}
	}
}
