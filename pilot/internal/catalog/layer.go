package catalog

import (
	"maps"
	"slices"
)

// layer is the resources of a Layer that somebody has.
type layer struct {
	subjects int                            // who have it
	names    map[string]map[string]Resource // by type and name
	listed   map[string][]string            // the names of a type, until they change
}

func newLayer() *layer {
	return &layer{names: map[string]map[string]Resource{}, listed: map[string][]string{}}
}

// set notes whether there is a resource.
func (l *layer) set(r Resource, exists bool) {
	url, name := r.Type(), r.Name()
	of := l.names[url]
	if _, had := of[name]; had == exists {
		return
	}
	delete(l.listed, url)
	if !exists {
		delete(of, name)
		return
	}
	if of == nil {
		of = map[string]Resource{}
		l.names[url] = of
	}
	of[name] = r
}

func (l *layer) list(url string) []string {
	out, ok := l.listed[url]
	if !ok && len(l.names[url]) > 0 { // what nobody knows a type of is asked for by strangers, and nothing is kept for it
		out = slices.Sorted(maps.Keys(l.names[url]))
		l.listed[url] = out
	}
	return out
}

func (l *layer) all() []Resource {
	var out []Resource
	for _, of := range l.names {
		out = slices.AppendSeq(out, maps.Values(of))
	}
	return out
}

// In lists the resources of a layer that a subject has.
func (c *Catalog) In(id Layer) []Resource {
	if l := c.layers[id]; l != nil {
		return l.all()
	}
	return nil
}

// At returns the resource of a layer by its type and name, or nil.
func (c *Catalog) At(id Layer, url, name string) Resource {
	if l := c.layers[id]; l != nil {
		return l.names[url][name]
	}
	return nil
}

// Find returns the resource that a subject knows by a type and a name, or nil. One that has left has none.
func (c *Catalog) Find(s Subject, url, name string) Resource {
	for _, id := range s.Layers() {
		if l := c.layers[id]; l != nil && l.names[url][name] != nil {
			return l.names[url][name]
		}
	}
	return nil
}

// Names lists what a subject has of a type. A name may be listed twice.
func (c *Catalog) Names(s Subject, url string) []string {
	var out []string
	for _, id := range s.Layers() {
		if l := c.layers[id]; l != nil {
			out = append(out, l.list(url)...)
		}
	}
	return out
}

// All lists what a subject has of a type, in the order of names.
func (c *Catalog) All(s Subject, url string) []Resource {
	var out []Resource
	for _, name := range slices.Compact(slices.Sorted(slices.Values(c.Names(s, url)))) {
		out = append(out, c.Find(s, url, name))
	}
	return out
}
