package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// What is outside of the mesh is in a layer of its own, that of a namespace or, where namespaces say nothing themselves, of all of these: no policy says who may reach
// it, and no Sidecar hides it, as it would pass as it is then. Those whom a Sidecar keeps from all that has no name have one for themselves.

// ofOutside is the layer of an Outside, by whose it is (compile.OutsideFor).
func ofOutside(whose compile.Whose) Layer {
	return Layer{kind: outsideLayer, of: whose.Namespace, sidecar: whose.Sidecar}
}

// whose is what ofOutside made the layer of.
func (l Layer) whose() compile.Whose { return compile.Whose{Namespace: l.of, Sidecar: l.sidecar} }

// ExternalCluster is a port of a host outside of the mesh. Where clients show certificates of the mesh, those whose certificates come in another way have one of their own.
type ExternalCluster struct {
	Outside  compile.Whose
	Of       compile.HostPort
	TLS      bool // proxies speak it
	Delivery delivery.Way
}

func (r ExternalCluster) Type() string { return deltaxds.ClusterType }
func (r ExternalCluster) Name() string { return r.Of.Cluster(r.TLS) }
func (r ExternalCluster) layers(c *Catalog) []Layer {
	x := c.outside(r.Outside).Hosts[r.Of]
	if x == nil || x.Secured() != r.TLS || r.Delivery != delivery.ByAgent && !x.Mutual {
		return nil
	}
	return []Layer{ofOutside(r.Outside).by(r.Delivery)}
}

func (r ExternalCluster) make(c *Catalog) proto.Message {
	o := c.outside(r.Outside)
	return translate.ExternalCluster(o.Hosts[r.Of], compile.IPv6(o.Ranges), r.Delivery)
}

// ExternalListener takes what a client sends to an address that is said to be a host's.
type ExternalListener struct {
	Outside compile.Whose
	At      compile.Address
}

func (r ExternalListener) Type() string { return deltaxds.ListenerType }
func (r ExternalListener) Name() string { return r.At.String() }
func (r ExternalListener) layers(c *Catalog) []Layer {
	return ofOutsideIf(r.Outside, c.outside(r.Outside).Addresses[r.At] != nil)
}

func (r ExternalListener) make(c *Catalog) proto.Message {
	return translate.ExternalListener(c.outside(r.Outside).Addresses[r.At], r.At)
}

// NamedListener takes what a client sends to a port of any other address of a family, if it says whom it wants there, or the address is in somebody's network.
type NamedListener struct {
	Outside compile.Whose
	Port    uint32
	Family  registry.Family
}

func (r NamedListener) Type() string { return deltaxds.ListenerType }
func (r NamedListener) Name() string { return translate.NamedListenerAt(r.Port, r.Family).String() }
func (r NamedListener) layers(c *Catalog) []Layer {
	o := c.outside(r.Outside)
	return ofOutsideIf(r.Outside, o.Listens(r.Port, r.Family) && (r.Family == registry.IPv4 || compile.IPv6(o.Ranges)))
}

func (r NamedListener) make(c *Catalog) proto.Message {
	return translate.NamedListener(c.outside(r.Outside), r.Port, r.Family)
}

// NamedRoutes say where the requests go that come to a port.
type NamedRoutes struct {
	Outside compile.Whose
	Port    uint32
}

func (r NamedRoutes) Type() string { return deltaxds.RouteType }
func (r NamedRoutes) Name() string { return translate.NamedTable(r.Port) }
func (r NamedRoutes) layers(c *Catalog) []Layer {
	return ofOutsideIf(r.Outside, translate.Requested(c.outside(r.Outside).At(r.Port)))
}

func (r NamedRoutes) make(c *Catalog) proto.Message {
	return translate.NamedRoutes(c.outside(r.Outside), r.Port)
}

// outside is what a layer is of; nothing if nobody has it.
func (c *Catalog) outside(whose compile.Whose) *compile.Outside {
	if o := c.outsides[whose]; o != nil {
		return o
	}
	return &compile.Outside{}
}

func ofOutsideIf(whose compile.Whose, exists bool) []Layer {
	if !exists {
		return nil
	}
	return []Layer{ofOutside(whose)}
}

// outsideAnew is an Outside that subjects have and that may be another one than it was.
type outsideAnew struct {
	whose    compile.Whose
	was, now *compile.Outside
}

// renewOutsides compiles those anew that a turn of things concerns.
func (c *Catalog) renewOutsides(t *turn) {
	for whose, was := range c.outsides {
		if t.effects.Outside[""] || t.effects.Outside[whose.Namespace] || whose.Sidecar != "" && t.effects.Sidecared(whose.Namespace) {
			c.outsides[whose] = compile.CompileOutside(c.snap, c.settings, whose)
			t.outsides = append(t.outsides, outsideAnew{whose, was, c.outsides[whose]})
		}
	}
}

var external = family{
	of: func(c *Catalog, l Layer) []Resource {
		if l.kind != outsideLayer {
			return nil
		}
		o := c.outside(l.whose())
		if l.delivery != delivery.ByAgent {
			return mutuals(l.whose(), o, l.delivery)
		}
		return externals(l.whose(), o, compile.IPv6(o.Ranges))
	},
	touched: func(_ *Catalog, t *turn) (out []Resource) {
		for _, o := range t.outsides {
			ipv6 := compile.IPv6(o.was.Ranges) || compile.IPv6(o.now.Ranges)
			was, now := o.now.Without(o.was)
			for _, changed := range []*compile.Outside{was, now} {
				out = append(append(out, externals(o.whose, changed, ipv6)...), mutuals(o.whose, changed, delivery.BySecret)...)
			}
		}
		return out
	},
}

// mutuals lists the clusters of those whose certificates come in a way that is not all others'.
func mutuals(whose compile.Whose, o *compile.Outside, way delivery.Way) (out []Resource) {
	for of, x := range o.Hosts {
		if x.Mutual {
			out = append(out, ExternalCluster{whose, of, true, way})
		}
	}
	return out
}

// externals lists all that there is of an Outside.
func externals(whose compile.Whose, o *compile.Outside, ipv6 bool) (out []Resource) {
	for of, x := range o.Hosts {
		out = append(out, ExternalCluster{whose, of, x.Secured(), delivery.ByAgent})
	}
	for at := range o.Addresses {
		out = append(out, ExternalListener{whose, at})
	}
	families := []registry.Family{registry.IPv4}
	if ipv6 {
		families = ipFamilies
	}
	for port := range o.Ports() {
		for _, f := range families {
			if o.Listens(port, f) {
				out = append(out, NamedListener{whose, port, f})
			}
		}
		if translate.Requested(o.At(port)) {
			out = append(out, NamedRoutes{whose, port})
		}
	}
	return out
}
