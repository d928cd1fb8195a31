package catalog

import (
	"cmp"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Cluster is what a port of a Service is to its clients: who may serve it, and how it is spoken to. Clients whose certificates come in
// another way have one of their own, and so have those who call an address of another family.
type Cluster struct {
	Service  string // namespace/name
	Port     uint32
	Family   registry.Family
	Delivery delivery.Way // of the client's certificate
	For      string       // clients of a namespace of which DestinationRules say something in particular; empty: of all others
	TLS      bool         // proxies speak it with the Service's applications; the one in which they do not is there beside it
}

func (r Cluster) Type() string { return deltaxds.ClusterType }
func (r Cluster) Name() string {
	return clusterName(r.Service, r.Port, r.Family, r.TLS)
}

func (r Cluster) layers(c *Catalog) (out []Layer) {
	if !ruledFor(c, r.Service, r.For) || r.TLS && !securedFor(c, r.Service, r.Port, r.For) {
		return nil
	}
	for _, l := range layersOfPort(c, r.Service, r.Port, r.Family) {
		out = append(out, l.by(r.Delivery).ruledFor(r.For))
	}
	return out
}

// ruledFor reports whether clients of a namespace have resources of a service of their own. All others have those of an empty one.
func ruledFor(c *Catalog, service, clients string) bool {
	return clients == "" || compile.RuledFor(c.snap, c.settings, service)[clients]
}

// clients is whom compile knows by that.
func clients(ruled string) string { return cmp.Or(ruled, compile.Everywhere) }

func (r Cluster) make(c *Catalog) proto.Message {
	p := compile.PortFor(c.snap, c.settings, c.snap.Service(r.Service), r.Port, r.Family, clients(r.For))
	if !r.TLS {
		p = p.Meshed()
	}
	return translate.OutboundCluster(p, r.Delivery)
}

// securedFor reports whether clients of a namespace, or all others, have proxies that speak TLS with a Service's applications at a port.
func securedFor(c *Catalog, service string, port uint32, ruled string) bool {
	s := c.snap.Service(service)
	return s != nil && s.HasPort(port) && compile.SecuredAt(c.snap, c.settings, s, port, clients(ruled))
}

// securedForAny reports whether clients of any namespace do.
func securedForAny(c *Catalog, service string, port uint32) bool {
	if securedFor(c, service, port, "") {
		return true
	}
	for ns := range compile.RuledFor(c.snap, c.settings, service) {
		if securedFor(c, service, port, ns) {
			return true
		}
	}
	return false
}

// ownListeners reports whether clients of a namespace have listeners of a Service of their own.
func ownListeners(c *Catalog, s *registry.Service, ruled string) bool {
	return ruled == "" || ruledFor(c, s.ID, ruled) &&
		(s.Headless || compile.Secured(c.snap, c.settings, s, ruled) || compile.Secured(c.snap, c.settings, s, compile.Everywhere))
}

// Listener takes what a client sends to an address of a Service, or of a pod behind a headless one.
type Listener struct {
	At  compile.Address
	For string // as of Cluster; where it makes a difference
}

func (r Listener) Type() string { return deltaxds.ListenerType }
func (r Listener) Name() string { return r.At.String() }

func (r Listener) layers(c *Catalog) (out []Layer) {
	owner := compile.OwnerOf(c.snap, r.At)
	if owner == nil || !ownListeners(c, owner, r.For) {
		return nil
	}
	for _, l := range c.reach.of[owner.ID] {
		out = append(out, l.ruledFor(r.For))
	}
	return out
}

func (r Listener) make(c *Catalog) proto.Message {
	return translate.ServiceListener(compile.FrontendFor(c.snap, c.settings, r.At, clients(r.For)))
}

func clusterName(service string, port uint32, f registry.Family, tls bool) string {
	p := compile.ServicePort{Host: compile.HostOf(service), Number: port, Family: f}
	if tls {
		p.TLS = &registry.ClientTLS{}
	}
	return p.Cluster()
}

// ipFamilies are all of them. A Service that changes may come to have another, or lose one.
var ipFamilies = []registry.Family{registry.IPv4, registry.IPv6}

// layersOfPort are who may reach a port of a service by an address of a family.
func layersOfPort(c *Catalog, service string, port uint32, f registry.Family) []Layer {
	if s := c.snap.Service(service); s != nil && s.HasPort(port) && slices.Contains(s.Families(), f) {
		return c.reach.of[service]
	}
	return nil
}

// deliveries are the ways in which clients' certificates come.
var deliveries = []delivery.Way{delivery.ByAgent, delivery.BySecret}

var services = family{
	of: func(c *Catalog, l Layer) (out []Resource) {
		if l.place != (compile.Place{}) {
			return endpointsAt(c, l)
		}
		shared := l.delivery == delivery.ByAgent // only clusters differ
		for id := range c.reach.in[l.by(delivery.ByAgent).ruledFor("")] {
			if !ruledFor(c, id, l.ruled) {
				continue
			}
			s := c.snap.Service(id)
			for _, p := range s.Ports {
				for _, f := range s.Families() {
					out = append(out, Cluster{id, p.Number, f, l.delivery, l.ruled, false})
					if securedFor(c, id, p.Number, l.ruled) {
						out = append(out, Cluster{id, p.Number, f, l.delivery, l.ruled, true})
					}
					if shared && l.ruled == "" && c.spread[id].Everywhere() {
						out = append(out, bothEndpoints(id, p.Number, f, compile.Place{}, securedForAny(c, id, p.Number))...)
					}
				}
			}
			if !shared || !ownListeners(c, s, l.ruled) {
				continue
			}
			for _, at := range compile.Frontends(c.snap, s) {
				if owner := compile.OwnerOf(c.snap, at); owner.ID == id {
					out = append(out, Listener{at, l.ruled})
				}
			}
		}
		return out
	},
	touched: func(c *Catalog, t *turn) (out []Resource) {
		for id := range t.effects.Services {
			ruled := ruledNowAndBefore(c, t, id)
			for port := range portsOf(c, t, id) {
				for _, f := range ipFamilies {
					for _, d := range deliveries {
						for ns := range ruled {
							out = append(out, Cluster{id, port, f, d, ns, false}, Cluster{id, port, f, d, ns, true})
						}
					}
				}
			}
		}
		for id := range t.effects.Endpoints {
			for port := range portsOf(c, t, id) {
				for _, f := range ipFamilies {
					out = append(out, endpointsOf(c, t, id, port, f)...)
				}
			}
		}
		out = append(out, endpointsOn(c, t.effects.Nodes)...)
		for at := range t.effects.Frontends {
			for _, snap := range []*registry.Snapshot{c.snap, t.was} {
				if owner := compile.OwnerOf(snap, at); owner != nil {
					for ns := range ruledNowAndBefore(c, t, owner.ID) {
						out = append(out, Listener{at, ns})
					}
				}
			}
			out = append(out, Listener{At: at})
		}
		return out
	},
}

// ruledNowAndBefore are those for whom a service has resources of their own, or had, and all others, by an empty name.
func ruledNowAndBefore(c *Catalog, t *turn, service string) map[string]bool {
	out := compile.RuledFor(c.snap, c.settings, service)
	maps.Copy(out, compile.RuledFor(t.was, c.settings, service))
	out[""] = true
	return out
}

// portsOf are the ports that a Service has, and those that it had before it changed.
func portsOf(c *Catalog, t *turn, service string) map[uint32]bool {
	out := map[uint32]bool{}
	maps.Copy(out, t.effects.Ports[service])
	if s := c.snap.Service(service); s != nil {
		for _, p := range s.Ports {
			out[p.Number] = true
		}
	}
	return out
}
