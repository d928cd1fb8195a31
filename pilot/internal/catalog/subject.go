package catalog

import (
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Layer is those who have a resource in common: everybody, those whose certificates come in one way, the pods of a class, one pod.
type Layer struct{ kind, of string }

// Everyone has what is the same for the whole mesh.
var Everyone = Layer{kind: "everyone"}

const (
	deliveryLayer = "delivery"
	classLayer    = "class"
	podLayer      = "pod"
)

// ofDelivery are those whose certificates come in a way: everybody in the usual one, and so that those who get it in another
// have something of their own instead.
func ofDelivery(d registry.Delivery) Layer {
	if d == registry.ByAgent {
		return Everyone
	}
	return Layer{deliveryLayer, string(d)}
}

// OfPod is the subjects of one pod ("namespace/name").
func OfPod(pod string) Layer { return Layer{podLayer, pod} }

// Subject is what has a configuration: the proxy of a pod.
type Subject struct {
	pod, class string
	delivery   registry.Delivery
}

// subjectOf is the subject that a pod's proxy is.
func subjectOf(p *registry.Pod) Subject { return Subject{p.ID, compile.ClassOf(p).Key(), p.Delivery} }

// Pod is the pod whose proxy it is ("namespace/name").
func (s Subject) Pod() string { return s.pod }

// Layers returns whose resources the subject has. Where two layers have one of the same name, the subject has the former's.
func (s Subject) Layers() []Layer {
	out := []Layer{{podLayer, s.pod}, {classLayer, s.class}}
	if own := ofDelivery(s.delivery); own != Everyone {
		out = append(out, own)
	}
	return append(out, Everyone)
}

// Join adds a subject: the proxy of a pod. Each has to leave once.
func (c *Catalog) Join(p *registry.Pod) Subject {
	s := subjectOf(p)
	c.enter(s, p)
	return s
}

func (c *Catalog) enter(s Subject, p *registry.Pod) {
	if c.pods[s.pod] == nil {
		c.pods[s.pod] = p
	}
	if c.classes[s.class] == nil {
		c.classes[s.class] = &class{Class: compile.ClassOf(p)}
	}
	for _, id := range s.Layers() {
		l := c.layers[id]
		if l == nil {
			l = newLayer()
			c.layers[id] = l
			for _, f := range families {
				for _, r := range f.of(c, id) {
					l.set(r, true)
				}
			}
		}
		l.subjects++
	}
}

// Leave removes a subject, and returns the layers that nobody has any more.
func (c *Catalog) Leave(s Subject) (gone []Layer) {
	for _, id := range s.Layers() {
		l := c.layers[id]
		if l.subjects--; l.subjects > 0 {
			continue
		}
		delete(c.layers, id)
		gone = append(gone, id)
		switch id.kind {
		case podLayer:
			delete(c.pods, id.of)
		case classLayer:
			delete(c.classes, id.of)
		}
	}
	return gone
}

// Follow makes of a subject whose pod has changed the subject that it is now. It returns the layers that nobody has any more, and what
// the subject has now or had instead of it, which it has to be told of. Nothing of this is returned where nothing differs.
func (c *Catalog) Follow(s Subject, p *registry.Pod) (now Subject, gone []Layer, news []Resource) {
	now = subjectOf(p)
	if now == s {
		return s, nil, nil
	}
	was, is := s.Layers(), now.Layers()
	for _, id := range was {
		if !slices.Contains(is, id) {
			news = append(news, c.layers[id].all()...)
		}
	}
	c.enter(now, p)
	gone = c.Leave(s)
	for _, id := range is {
		if !slices.Contains(was, id) {
			news = append(news, c.layers[id].all()...)
		}
	}
	return now, gone, news
}
