// Package catalog says which resources there are, for whom, of what each is made and which of them a change touches. What belongs
// together, such as all that stands for a Service, is a family, and has a file. A resource is known by a value that says what it is of;
// Envoy's names are made from that and never read back.
package catalog

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Resource identifies a resource: a comparable value of one of this package's types.
type Resource interface {
	// Type is the URL of the resource's type in xDS.
	Type() string
	// Name is what Envoy calls it.
	Name() string

	// layers are who may have it now, whether anybody does or not. None: there is no such resource.
	layers(*Catalog) []Layer
	// make returns it as it is now. There is one.
	make(*Catalog) proto.Message
}

// families are all of them. Each is described in a file of its own.
var families = []family{fixed, outbound, services, external, revocations, workloads, authorization, inboundRoutes}

// family is a group of resources that come and change together.
type family struct {
	// of lists what there is for a layer.
	of func(*Catalog, Layer) []Resource
	// touched lists what a turn of things may have made, changed or removed, some of it twice. Nil: they never change.
	touched func(*Catalog, *turn) []Resource
}

// turn is what has happened, as families look at it.
type turn struct {
	effects  compile.Effects
	classes  []compiledAnew
	outsides []outsideAnew
	spread   spread             // of the services whose endpoints may have changed, what it was
	was      *registry.Snapshot // before it
}

// moved notes all that there is of a service that others than before may reach.
func (t *turn) moved(c *Catalog, service string) {
	t.effects.Services[service], t.effects.Endpoints[service] = true, true
	if s := c.snap.Service(service); s != nil {
		for _, at := range compile.Frontends(c.snap, s) {
			t.effects.Frontends[at] = true
		}
	}
}

// compiledAnew is a class of connected pods that may be another one than it was.
type compiledAnew struct {
	class    string
	was, now *compile.Workload // was is nil if nothing of it has been made yet
}

// Touched is a resource that may have been made, changed or removed, and who is concerned.
type Touched struct {
	Resource
	Stays []Layer // had it and have it still, if it is another one now
	Moves []Layer // have it now and had not, or had it and have not
}

// Catalog is the resources of a snapshot for the subjects that there are. It is not safe for concurrent use.
type Catalog struct {
	settings compile.Settings
	snap     *registry.Snapshot
	layers   map[Layer]*layer
	where    map[Resource][]Layer // of what a subject has
	reach    *reach               // nil as long as there are no subjects
	classes  map[string]*class    // of the layers of classes, by what they are of
	spread   spread               // nil as long as there are no subjects
	latest   latest
	places   map[compile.Place]int              // where subjects are, and how many
	scopes   map[Layer]*scope                   // of the layers of those who may know only some services
	pods     map[string]*followed               // of subjects
	outsides map[compile.Whose]*compile.Outside // of the layers of what is outside of the mesh
}

type class struct {
	compile.Class
	compiled *compile.Workload // nil until something of it is made
}

// followed is a pod of subjects, as last known.
type followed struct {
	*registry.Pod
	subjects int
}

// New returns a catalogue of the snapshot for nobody yet.
func New(settings compile.Settings, snap *registry.Snapshot) *Catalog {
	return &Catalog{
		settings: settings, snap: snap, layers: map[Layer]*layer{}, where: map[Resource][]Layer{}, classes: map[string]*class{},
		scopes: map[Layer]*scope{}, places: map[compile.Place]int{}, pods: map[string]*followed{},
		outsides: map[compile.Whose]*compile.Outside{},
	}
}

// Snapshot is what the catalogue is made from.
func (c *Catalog) Snapshot() *registry.Snapshot { return c.snap }

// Apply moves on to a snapshot, given what changed since the last. It returns what of layers that a subject has may be another, and the
// pods whose subjects may be others, which are to follow.
func (c *Catalog) Apply(snap *registry.Snapshot, changes []registry.Change) (out []Touched, following []*registry.Pod) {
	was := c.snap
	c.snap, c.latest = snap, latest{}
	if len(c.layers) == 0 {
		return nil, nil
	}
	t := &turn{was: was, effects: compile.EffectsOf(snap, c.settings, changes)}
	for id := range t.effects.Reach {
		if c.reach.renew(c, id) {
			t.moved(c, id)
		}
	}
	t.spread = c.spread.renew(c, t.effects.Endpoints)
	for _, change := range changes {
		if change.Kind != registry.Pods || c.pods[change.ID] == nil {
			continue
		}
		// The proxy of a pod that was deleted drains with what it has.
		if now, _ := change.New.(*registry.Pod); now != nil {
			c.pods[change.ID].Pod = now
			following = append(following, now)
		}
	}
	c.renewOutsides(t)
	if len(t.effects.Sidecars)+len(t.effects.Outside) > 0 { // few changes are of these, and there may be many pods
		for _, p := range c.pods {
			if t.effects.Sidecared(p.Namespace) || t.effects.Outside[p.Namespace] || t.effects.Outside[""] {
				following = append(following, p.Pod)
			}
		}
	}
	if len(t.effects.Nodes) > 0 { // they come, go and change their zones; all else that they say is nobody's affair here
		for _, p := range c.pods {
			if t.effects.Nodes[p.Node] {
				following = append(following, p.Pod)
			}
		}
	}
	for id, class := range c.classes {
		if slices.ContainsFunc(t.effects.Classes, func(s compile.ClassSelector) bool { return s.Selects(class.Class) }) {
			was := class.compiled
			class.compiled = nil
			t.classes = append(t.classes, compiledAnew{id, was, c.workload(id)})
		}
	}
	seen := map[Resource]bool{}
	for _, f := range families {
		if f.touched == nil {
			continue
		}
		for _, r := range f.touched(c, t) {
			if seen[r] {
				continue
			}
			seen[r] = true
			if touched := c.place(r); len(touched.Stays)+len(touched.Moves) > 0 {
				out = append(out, touched)
			}
		}
	}
	return out, following
}

// place notes who has a resource now.
func (c *Catalog) place(r Resource) Touched {
	out, was := Touched{Resource: r}, c.where[r]
	var now []Layer
	for _, id := range r.layers(c) {
		if c.layers[id] == nil {
			continue
		}
		now = append(now, id)
		if slices.Contains(was, id) {
			out.Stays = append(out.Stays, id)
			continue
		}
		out.Moves = append(out.Moves, id)
		c.layers[id].set(r, true)
	}
	for _, id := range was {
		if !slices.Contains(now, id) {
			out.Moves = append(out.Moves, id)
			c.layers[id].set(r, false)
		}
	}
	c.locate(r, now)
	return out
}

// locate remembers the layers of subjects where a resource is.
func (c *Catalog) locate(r Resource, at []Layer) {
	if len(at) == 0 {
		delete(c.where, r)
		return
	}
	c.where[r] = at
}

// Make returns a resource as it is now, or nil if nobody has it.
func (c *Catalog) Make(r Resource) proto.Message {
	if len(c.where[r]) == 0 {
		return nil
	}
	return r.make(c)
}

// workload compiles a class; the outcome is kept until something that it depends on changes.
func (c *Catalog) workload(id string) *compile.Workload {
	class := c.classes[id]
	if class.compiled == nil {
		w := compile.CompileWorkload(c.snap, c.settings, class.Class)
		class.compiled = &w
	}
	return class.compiled
}
