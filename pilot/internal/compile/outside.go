package compile

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Outside is what workloads call that is outside of the mesh, as ServiceEntries name it and DestinationRules have proxies speak with it. All namespaces that say
// nothing of it themselves have the same.
type Outside struct {
	Hosts     map[HostPort]*External
	Addresses map[Address]*External
	Networks  map[Network]*External // of which all addresses are the host's but those of narrower ones, and what is the mesh's own
	Ranges    []netip.Prefix        // of Services' addresses, which are nobody's outside
	Only      bool                  // nothing else outside of the mesh may be called
	Own       []netip.Addr          // in Networks, of pods and of API servers, which are nobody's outside either
}

// Whose names an Outside by the workloads that have it.
type Whose struct {
	Namespace string // or Everywhere; empty: nobody has it, as nothing has a name
	Sidecar   string // ("namespace/name") that keeps its workloads from all that has no name; empty: none
}

// Network is a network and a port to which clients connect.
type Network struct {
	netip.Prefix
	Port uint32
}

// HostPort is a port of a host, as clients call it.
type HostPort struct {
	Host string // as the ServiceEntry has it, maybe with a wildcard
	Port uint32
}

// External is a port of a host outside of the mesh.
type External struct {
	HostPort
	registry.EntryPort
	Entry *registry.ServiceEntry    // that names it
	Rule  *registry.DestinationRule // that says how it is spoken with, or nil
	// TLS is how proxies speak TLS with it, on behalf of clients who do not. Nil: what clients send is sent as it is, or within mutual TLS of the mesh.
	TLS *registry.ClientTLS
	// Mutual says that proxies speak mutual TLS of the mesh with it, and Identities whose server it may be then, without those that are revoked. Empty: nobody's.
	Mutual     bool
	Identities []string
	// Closed says that it may not be spoken with: a DestinationRule asks for what cannot be had.
	Closed bool
}

// Secured reports whether proxies speak TLS with it.
func (x *External) Secured() bool { return x.TLS != nil || x.Mutual }

// Cluster returns the name of its Envoy cluster.
func (x *External) Cluster() string { return x.HostPort.Cluster(x.Secured()) }

// is reports whether proxies have the same of another one.
func (x *External) is(y *External) bool {
	return y != nil && x.HostPort == y.HostPort && x.EntryPort == y.EntryPort && x.Entry == y.Entry && x.Rule == y.Rule && x.TLS == y.TLS && x.Closed == y.Closed &&
		x.Mutual == y.Mutual && slices.Equal(x.Identities, y.Identities)
}

// secured is the subset of clusters with which proxies speak TLS.
const secured = "tls"

// Cluster returns the name of its cluster, which is another one where proxies speak TLS with it: an Envoy that does not take a cluster, such as for a file that is not
// there, goes on with the one of the name that it has, and that may be in plaintext.
func (h HostPort) Cluster(tls bool) string {
	if tls {
		return istiocompat.OutboundCluster(h.Port, secured, h.Host)
	}
	return istiocompat.OutboundCluster(h.Port, "", h.Host)
}

// Routes take all requests to it, whatever host they name.
func (x *External) Routes() Table { return toAny(x.Cluster(), x.Host, x.Cluster()) }

// Wildcard reports whether it stands for many hosts.
func (x *External) Wildcard() bool { return strings.HasPrefix(x.Host, "*.") }

// Names are those of which a server's certificate has to have one; none: that by which a request asked for it.
func (x *External) Names() []string {
	switch {
	case len(x.TLS.SubjectAltNames) > 0:
		return x.TLS.SubjectAltNames
	case len(x.Entry.SubjectAltNames) > 0:
		return x.Entry.SubjectAltNames
	case !x.Wildcard():
		return []string{x.Host}
	case x.TLS.ServerName != "":
		return []string{x.TLS.ServerName}
	}
	return nil
}

// ServerName is that for which a server is asked; empty: that by which a request asks for it.
func (x *External) ServerName() string {
	if x.TLS.ServerName == "" && !x.Wildcard() {
		return x.Host
	}
	return x.TLS.ServerName
}

// Frontend is the external where clients reach it by an address.
func (x *External) Frontend(at Address) *Frontend {
	return &Frontend{Address: at, Service: ServicePort{Host: x.Host, Number: x.Port, Protocol: x.Protocol}}
}

// All lists what there is, in an order that is always the same.
func (o *Outside) All() []*External {
	return slices.SortedFunc(maps.Values(o.Hosts), func(a, b *External) int { return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port)) })
}

// Ports are those at which clients say by name whom they want, or by a network.
func (o *Outside) Ports() map[uint32]bool {
	out := map[uint32]bool{}
	for _, x := range o.Hosts {
		if x.Named() {
			out[x.Port] = true
		}
	}
	for n := range o.Networks {
		out[n.Port] = true
	}
	return out
}

// Listens reports whether clients say by name whom they want at a port, or by a network of a family.
func (o *Outside) Listens(port uint32, f registry.Family) bool {
	return len(o.At(port)) > 0 || len(o.NetworksAt(port, f)) > 0
}

// NetworksAt lists the networks of a family at a port, in an order that is always the same.
func (o *Outside) NetworksAt(port uint32, f registry.Family) (out []netip.Prefix) {
	for n := range o.Networks {
		if n.Port == port && n.Addr().Is6() == (f == registry.IPv6) {
			out = append(out, n.Prefix)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// OwnIn are the addresses of the mesh's own that are in networks.
func (o *Outside) OwnIn(networks []netip.Prefix) (out []netip.Prefix) {
	for _, a := range o.Own {
		if slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// At lists what has a name at a port, in an order that is always the same.
func (o *Outside) At(port uint32) []*External {
	return slices.DeleteFunc(o.All(), func(x *External) bool { return x.Port != port || !x.Named() })
}

// Without returns what there was in another one that is not the same here, and what there is here that was not the same there.
func (o *Outside) Without(was *Outside) (gone, come *Outside) {
	if !slices.Equal(o.Ranges, was.Ranges) {
		return was, o
	}
	less := func(a, b *Outside) *Outside {
		out := &Outside{Hosts: map[HostPort]*External{}, Addresses: map[Address]*External{}, Networks: map[Network]*External{}, Ranges: a.Ranges}
		for of, x := range a.Hosts {
			if !x.is(b.Hosts[of]) {
				out.Hosts[of] = x
			}
		}
		for at, x := range a.Addresses {
			if !x.is(b.Addresses[at]) {
				out.Addresses[at] = x
			}
		}
		for n, x := range a.Networks {
			if !x.is(b.Networks[n]) || !slices.Equal(a.Own, b.Own) {
				out.Networks[n] = x
			}
		}
		return out
	}
	return less(was, o), less(o, was)
}

// OutsideFor says whose Outside workloads of a namespace have for which a Sidecar holds, or none does (nil): those of the Sidecar, if it keeps them from what has no name;
// else that of the namespace, or of all that say nothing themselves.
func OutsideFor(snap *registry.Snapshot, set Settings, namespace string, sidecar *registry.Sidecar) Whose {
	switch whose := namesOutside(snap, set, namespace); {
	case whose == "":
		return Whose{}
	case sidecar.Confines():
		return Whose{namespace, sidecar.ID}
	default:
		return Whose{Namespace: whose}
	}
}

// namesOutside finds whose ServiceEntries and DestinationRules hold in a namespace: its own among others, those for all namespaces that say nothing themselves, or none.
func namesOutside(snap *registry.Snapshot, set Settings, namespace string) string {
	if namespace == set.RootNamespace || nonempty(snap.ServiceEntriesIn(namespace)) || nonempty(snap.DestinationRulesIn(namespace)) {
		return namespace
	}
	found := ""
	for e := range snap.ServiceEntriesIn(set.RootNamespace) {
		switch {
		case slices.Contains(e.ExportTo, namespace):
			return namespace
		case exportedTo(e.ExportTo, e.Namespace, Everywhere):
			found = Everywhere
		}
	}
	for d := range snap.DestinationRulesIn(set.RootNamespace) {
		if slices.Contains(d.ExportTo, namespace) {
			return namespace
		}
	}
	return found
}

func nonempty[T any](seq iter.Seq[T]) bool {
	for range seq {
		return true
	}
	return false
}

// CompileOutside compiles the Outside that somebody has. Of several ServiceEntries for a port of a host, one of the namespace
// itself holds before one of the root namespace, then the oldest, then the first by name; the others have no effect there.
func CompileOutside(snap *registry.Snapshot, set Settings, whose Whose) *Outside {
	out := &Outside{Hosts: map[HostPort]*External{}, Addresses: map[Address]*External{}, Networks: map[Network]*External{}, Ranges: ServiceRanges(snap), Only: whose.Sidecar != ""}
	namespace, sidecar := whose.Namespace, snap.Sidecar(whose.Sidecar)
	if out.Only && sidecar == nil {
		return out
	}
	for e := range entriesFor(snap, set, namespace) {
		for _, host := range e.Hosts {
			if out.Only && !importsHost(sidecar, namespace, e.Namespace, host) {
				continue
			}
			for _, p := range e.Ports {
				at := HostPort{host, p.Number}
				if out.Hosts[at] == nil {
					out.Hosts[at] = externalOf(snap, set, namespace, e, host, p)
				}
			}
		}
	}
	for e := range entriesFor(snap, set, namespace) {
		for _, p := range e.Ports {
			x := out.Hosts[HostPort{e.Hosts[0], p.Number}]
			if x == nil || x.Entry != e {
				continue
			}
			for _, ip := range e.Addresses {
				if at := (Address{ip, p.Number}); out.Addresses[at] == nil && !OfMesh(snap, out.Ranges, ip) {
					out.Addresses[at] = x
				}
			}
			for _, n := range e.Networks {
				if at := (Network{n, p.Number}); out.Networks[at] == nil && !OfServices(out.Ranges, n) {
					out.Networks[at] = x
				}
			}
		}
	}
	out.Own = ownIn(snap, out)
	return out
}

// OfServices reports whether all addresses of a network are Services'.
func OfServices(ranges []netip.Prefix, n netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= n.Bits() && r.Overlaps(n) })
}

// ownIn finds the addresses of pods and of API servers in an Outside's networks.
func ownIn(snap *registry.Snapshot, o *Outside) (out []netip.Addr) {
	if len(o.Networks) == 0 {
		return nil
	}
	var networks []netip.Prefix
	for n := range o.Networks {
		if !slices.Contains(networks, n.Prefix) {
			networks = append(networks, n.Prefix)
		}
	}
	consider := func(addresses []string) {
		for _, text := range addresses {
			a, err := netip.ParseAddr(text)
			holds := func(p netip.Prefix) bool { return p.Contains(a) }
			if err == nil && slices.ContainsFunc(networks, holds) && !slices.ContainsFunc(o.Ranges, holds) {
				out = append(out, a)
			}
		}
	}
	for p := range snap.Pods() {
		consider(p.IPs)
	}
	for s := range snap.SlicesOf(apiServer) {
		consider(s.Addresses)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// entriesFor yields the ServiceEntries that hold in a namespace, those that hold before others first.
func entriesFor(snap *registry.Snapshot, set Settings, namespace string) iter.Seq[*registry.ServiceEntry] {
	oldest := func(of iter.Seq[*registry.ServiceEntry], holds func(*registry.ServiceEntry) bool) []*registry.ServiceEntry {
		var out []*registry.ServiceEntry
		for e := range of {
			if !e.Ignored && holds(e) {
				out = append(out, e)
			}
		}
		slices.SortStableFunc(out, func(a, b *registry.ServiceEntry) int { return a.Created.Compare(b.Created) })
		return out
	}
	var out []*registry.ServiceEntry
	if namespace != Everywhere && namespace != set.RootNamespace {
		out = oldest(snap.ServiceEntriesIn(namespace), func(*registry.ServiceEntry) bool { return true })
	}
	return slices.Values(append(out, oldest(snap.ServiceEntriesIn(set.RootNamespace), func(e *registry.ServiceEntry) bool {
		return exportedTo(e.ExportTo, e.Namespace, namespace)
	})...))
}

// OfMesh reports whether an address is a Service's, a pod's or the API server's: nobody's to name anew. What else stands in EndpointSlices does not count: who writes
// one could have a ServiceEntry of others lose its address.
func OfMesh(snap *registry.Snapshot, ranges []netip.Prefix, ip string) bool {
	a, err := netip.ParseAddr(ip)
	if err != nil || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) || snap.PodAt(ip) != nil || nonempty(snap.ServicesAt(ip)) {
		return true
	}
	for s := range snap.SlicesOf(apiServer) {
		if slices.Contains(s.Addresses, ip) {
			return true
		}
	}
	return false
}

// apiServer is the Service whose endpoints are the API servers' own addresses, which they write themselves.
const apiServer = "default/kubernetes"

// externalOf compiles a port of a host, with what DestinationRules say of it.
func externalOf(snap *registry.Snapshot, set Settings, namespace string, e *registry.ServiceEntry, host string, p registry.EntryPort) *External {
	out := &External{HostPort: HostPort{host, p.Number}, EntryPort: p, Entry: e}
	if p.TLS && !e.Internal {
		return out // clients speak TLS themselves
	}
	rule := ruleOf(snap, set, namespace, e.Namespace, host)
	if rule == nil || rule.For(p.Number) == nil {
		out.mutual(snap, set, nil)
		return out
	}
	out.Rule = rule
	switch t := rule.For(p.Number); {
	case t.Broken:
		out.Closed = true
	case t.Mode == registry.TLSIstioMutual:
		out.mutual(snap, set, t.SubjectAltNames)
		out.Closed = !out.Mutual // it has no identity of the mesh
	case !p.TLS && t.Secures():
		out.TLS = t
		// Only a request says which of many hosts is to prove itself.
		out.Closed = out.Names() == nil && !p.Protocol.IsHTTP()
	}
	return out
}

// mutual has proxies speak mutual TLS of the mesh with it, if its server has an identity: one of those that a rule names, else of those that the ServiceEntry names.
func (x *External) mutual(snap *registry.Snapshot, set Settings, named []string) {
	if len(named) == 0 {
		named = identitiesOf(set, x.Entry)
	}
	if x.Mutual = len(named) > 0; x.Mutual {
		x.Identities = standing(snap, set, named)
	}
}

// identitiesOf are those that a ServiceEntry's servers may have, if they are of the mesh.
func identitiesOf(set Settings, e *registry.ServiceEntry) (out []string) {
	if !e.Internal {
		return nil
	}
	out = slices.Clone(e.SubjectAltNames)
	for _, s := range e.Endpoints {
		if s.Account != "" {
			out = append(out, set.URIs(e.Namespace, s.Account)...)
		}
	}
	return out
}
