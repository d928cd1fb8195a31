package catalog

import (
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

// Layer is those who have resources in common: all proxies, those who may reach some services, the pods of a class.
type Layer struct {
	kind, of string
	// delivery is how certificates come to those who have the layer instead of the one without. It has only what depends on that.
	delivery delivery.Way
	// place is where those are who have the layer beside the one without. It has only what depends on that.
	place compile.Place
	// ruled is the namespace of those who have the layer before the one without. It has only what DestinationRules say of their calls in particular.
	ruled string
	// module is how the module of package closer comes to those who have the layer beside the one without. It has only what needs the module.
	module string
	// sidecar is that which keeps those who have the layer from all outside of the mesh that has no name.
	sidecar string
}

var (
	// Mesh has what every proxy has.
	Mesh = Layer{kind: "mesh"}
	// Everyone has the services that everyone may reach.
	Everyone = Layer{kind: "everyone"}
	// Confined has what those have, before what every proxy has, whom a Sidecar keeps from all that has no name.
	Confined = Layer{kind: "confined"}
)

const (
	namespaceLayer = "namespace"
	identityLayer  = "identity"
	scopeLayer     = "scope"
	classLayer     = "class"
	outsideLayer   = "outside"
	injectedLayer  = "injected"
)

// by is the layer of those whose certificates come in a way, beside the layer that they have as all others do.
func (l Layer) by(d delivery.Way) Layer {
	l.delivery = d
	return l
}

// at is the layer of those at a place, beside the layer that they have as all others do.
func (l Layer) at(p compile.Place) Layer {
	l.place = p
	return l
}

// ruledFor is the layer of those of a namespace, before the layer that they have as all others do.
func (l Layer) ruledFor(namespace string) Layer {
	l.ruled = namespace
	return l
}

// String names the layer, differently from every other.
func (l Layer) String() string {
	out := l.kind
	if l.of != "" {
		out += "/" + l.of
	}
	if l.delivery != delivery.ByAgent {
		out += " by " + string(l.delivery)
	}
	if l.place != (compile.Place{}) {
		out += " at " + l.place.String()
	}
	if l.ruled != "" {
		out += " for " + l.ruled
	}
	if l.module != "" {
		out += " with the module " + l.module
	}
	if l.sidecar != "" {
		out += " under " + l.sidecar
	}
	return out
}

// ofClass is the layer of a class of pods, by its key.
func ofClass(key string) Layer { return Layer{kind: classLayer, of: key} }

// holding is where the resource of a name lies that the layer has: with the module, if it needs that.
func (l Layer) holding(name string, module translate.ModuleSource) Layer {
	if translate.NeedsModule(name) {
		return l.with(module)
	}
	return l
}

// with is the layer, for those whose module comes from there, of what needs it of the resources that the layer has for all.
func (l Layer) with(module translate.ModuleSource) Layer {
	l.module = "sent"
	if module == translate.ModuleByThePod {
		l.module = "by the pod"
	}
	return l
}

// AsInjected is the layer by which pods of a node are known to be of one class, as their proxies say it. It has nothing.
func AsInjected(c compile.Class) Layer { return Layer{kind: injectedLayer, of: c.AsInjected().Key()} }

// Subject is what has a configuration: the proxy of a pod.
type Subject struct {
	pod, class         string
	injected           Layer
	namespace, account string
	scope              Layer // of the services that it may know; zero if those are all that it may reach
	delivery           delivery.Way
	node, zone         compile.Place
	outside            compile.Whose // it has (compile.OutsideFor); empty if it has none
	confined           bool          // a Sidecar keeps it from all that has no name
	module             translate.ModuleSource
	ruled              bool // DestinationRules say something in particular of calls of its namespace
}

// subjectOf is the subject that a pod's proxy is, whose module comes from there.
func (c *Catalog) subjectOf(p *registry.Pod, module translate.ModuleSource) (Subject, *registry.Sidecar) {
	class := compile.ClassOf(p)
	out := Subject{
		pod: p.ID, class: class.Key(), injected: AsInjected(class), namespace: p.Namespace, account: p.ServiceAccount, delivery: p.Delivery,
		node: compile.OnNode(p.Node), zone: compile.InZone(c.snap.ZoneOf(p.Node)),
		ruled: compile.Ruled(c.snap, p.Namespace), module: module,
	}
	sidecar := compile.SidecarOf(c.snap, c.settings, p.Namespace, p.Labels)
	out.outside = compile.OutsideFor(c.snap, c.settings, p.Namespace, sidecar)
	out.confined = sidecar.Confines()
	if sidecar != nil && sidecar.Egress != nil {
		out.scope = ofScope(sidecar, p.Namespace, p.ServiceAccount)
	}
	return out, sidecar
}

// Pod is the pod whose proxy it is ("namespace/name").
func (s Subject) Pod() string { return s.pod }

// Class is the layer of the pods of its class, which has all by which policies hold for them.
func (s Subject) Class() Layer { return ofClass(s.class) }

// Layers returns whose resources the subject has. Where two layers have one of the same name, the subject has the former's.
func (s Subject) Layers() []Layer {
	out := []Layer{ofClass(s.class), ofClass(s.class).with(s.module), Mesh.with(s.module)}
	if s.outside.Namespace != "" {
		if s.delivery != delivery.ByAgent {
			out = append(out, ofOutside(s.outside).by(s.delivery))
		}
		out = append(out, ofOutside(s.outside))
	}
	services := reachOf(s.namespace, s.account)
	if s.scope != (Layer{}) {
		services = []Layer{s.scope}
	}
	if s.ruled {
		if s.delivery != delivery.ByAgent {
			for _, l := range services {
				out = append(out, l.by(s.delivery).ruledFor(s.namespace))
			}
		}
		for _, l := range services {
			out = append(out, l.ruledFor(s.namespace))
		}
	}
	if s.delivery != delivery.ByAgent {
		for _, l := range services {
			out = append(out, l.by(s.delivery))
		}
	}
	for _, l := range services {
		out = append(out, l.at(s.node), l.at(s.zone))
	}
	if s.confined {
		out = append(out, Confined)
	}
	return append(append(out, services...), Mesh, s.injected)
}

// Join adds a subject: the proxy of a pod, whose module comes from there. Each has to leave once.
func (c *Catalog) Join(p *registry.Pod, module translate.ModuleSource) Subject {
	s, sidecar := c.subjectOf(p, module)
	c.enter(s, p, sidecar)
	return s
}

func (c *Catalog) enter(s Subject, p *registry.Pod, sidecar *registry.Sidecar) {
	if c.pods[s.pod] == nil {
		c.pods[s.pod] = &followed{Pod: p}
	}
	c.pods[s.pod].subjects++
	if c.classes[s.class] == nil {
		c.classes[s.class] = &class{Class: compile.ClassOf(p)}
	}
	if c.reach == nil {
		c.reach, c.spread = newReach(c), newSpread(c)
	}
	if s.scope != (Layer{}) && c.scopes[s.scope] == nil {
		c.scopes[s.scope] = &scope{c.settings, sidecar, s.namespace, s.account}
		c.reach.open(c, s.scope)
	}
	if s.outside.Namespace != "" && c.outsides[s.outside] == nil {
		c.outsides[s.outside] = compile.CompileOutside(c.snap, c.settings, s.outside)
	}
	for _, id := range s.Layers() {
		l := c.layers[id]
		if l == nil {
			l = newLayer()
			c.layers[id] = l
			for _, f := range families {
				for _, r := range f.of(c, id) {
					l.set(r, true)
					c.where[r] = append(c.where[r], id)
				}
			}
		}
		l.subjects++
	}
	for _, p := range []compile.Place{s.node, s.zone} {
		c.places[p]++
	}
}

// ClassOf returns the class of a subject that has joined.
func (c *Catalog) ClassOf(s Subject) compile.Class { return c.classes[s.class].Class }

// Leave removes a subject, and returns the resources that nobody has any more.
func (c *Catalog) Leave(s Subject) (gone []Resource) {
	if c.pods[s.pod].subjects--; c.pods[s.pod].subjects == 0 {
		delete(c.pods, s.pod)
	}
	for _, id := range s.Layers() {
		l := c.layers[id]
		if l.subjects--; l.subjects > 0 {
			continue
		}
		delete(c.layers, id)
		for _, r := range l.all() {
			c.locate(r, slices.DeleteFunc(c.where[r], func(other Layer) bool { return other == id }))
			if c.where[r] == nil {
				gone = append(gone, r)
			}
		}
		switch id.kind {
		case classLayer:
			if id == ofClass(s.class) {
				delete(c.classes, id.of)
			}
		case outsideLayer:
			if id == ofOutside(id.whose()) { // who had that of a delivery has left it before
				delete(c.outsides, id.whose())
			}
		case scopeLayer:
			if id == s.scope {
				c.reach.close(id)
				delete(c.scopes, id)
			}
		}
	}
	for _, p := range []compile.Place{s.node, s.zone} {
		if c.places[p]--; c.places[p] == 0 {
			delete(c.places, p)
		}
	}
	if len(c.layers) == 0 {
		c.reach, c.spread = nil, nil
	}
	return gone
}

// Follow makes of a subject whose pod has changed the subject that it is now, and returns the resources that nobody has any more.
func (c *Catalog) Follow(s Subject, p *registry.Pod) (now Subject, gone []Resource) {
	now, sidecar := c.subjectOf(p, s.module)
	if now == s {
		return s, nil
	}
	c.enter(now, p, sidecar)
	return now, c.Leave(s)
}
