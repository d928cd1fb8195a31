package nodexds

import (
	"maps"
	"slices"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// cache is what Pilot has said: of each pod, and of the layers that these words name.
type cache struct {
	words  map[string][]string // layers by the pod's UID
	layers map[string]layer
	used   map[string]bool // the layers that a word names
}

// layer is resources by type and name.
type layer map[string]map[string]*deltaxds.Resource

func newCache() cache {
	return cache{words: map[string][]string{}, layers: map[string]layer{}, used: map[string]bool{}}
}

// find returns a pod's resource. It is not known whether there is one while Pilot has not spoken of the pod.
func (c cache) find(uid, url, name string) (r *deltaxds.Resource, known bool) {
	for _, l := range c.words[uid] {
		if r := c.layers[l][url][name]; r != nil {
			return r, true
		}
	}
	return nil, c.words[uid] != nil
}

// names lists what a pod has of a type; a name that several layers have more than once.
func (c cache) names(uid, url string) (names []string, known bool) {
	for _, l := range c.words[uid] {
		names = slices.AppendSeq(names, maps.Keys(c.layers[l][url]))
	}
	return names, c.words[uid] != nil
}

// apply takes an update, in all its parts, and returns what may differ for pods.
func (c cache) apply(parts []*nodev1.Update) map[string]deltaxds.News {
	news := map[string]deltaxds.News{}
	forgotten := false
	for _, u := range parts {
		for _, w := range u.GetWords() {
			if len(w.GetLayers()) == 0 {
				delete(c.words, w.GetUid()) // its proxy keeps what it has
				forgotten = true
				continue
			}
			c.words[w.GetUid()] = w.GetLayers()
			news[w.GetUid()] = deltaxds.News{Everything: true}
		}
	}
	if len(news) > 0 || forgotten {
		c.tidy()
	}
	touched := map[string]map[string][]string{} // names by layer and type
	for _, u := range parts {
		for _, change := range u.GetChanges() {
			if !c.used[change.GetLayer()] {
				continue
			}
			of := touched[change.GetLayer()]
			if of == nil {
				of = map[string][]string{}
				touched[change.GetLayer()] = of
			}
			c.change(change, of)
		}
	}
	for uid, layers := range c.words {
		if news[uid].Everything {
			continue
		}
		names := map[string][]string{}
		for _, l := range layers {
			for url, of := range touched[l] {
				names[url] = append(names[url], of...)
			}
		}
		if len(names) > 0 {
			news[uid] = deltaxds.News{Names: names}
		}
	}
	return news
}

// change changes a layer, and adds the names that it concerns to touched.
func (c cache) change(change *nodev1.Change, touched map[string][]string) {
	l := c.layers[change.GetLayer()]
	if l == nil {
		l = layer{}
		c.layers[change.GetLayer()] = l
	}
	url := change.GetType()
	of := l[url]
	if of == nil && len(change.GetResources()) > 0 {
		of = map[string]*deltaxds.Resource{}
		l[url] = of
	}
	for _, r := range change.GetResources() {
		of[r.GetName()] = deltaxds.Received(r.GetName(), r.GetVersion(), r.GetBody().GetTypeUrl(), r.GetBody().GetValue())
		touched[url] = append(touched[url], r.GetName())
	}
	for _, name := range change.GetRemoved() {
		delete(of, name)
		touched[url] = append(touched[url], name)
	}
}

// tidy notes which layers a word names, after one has changed, and drops the others.
func (c cache) tidy() {
	clear(c.used)
	for _, layers := range c.words {
		for _, l := range layers {
			c.used[l] = true
		}
	}
	maps.DeleteFunc(c.layers, func(name string, _ layer) bool { return !c.used[name] })
}

// keep drops the words about pods that are not among those given, and what nobody needs without them.
func (c cache) keep(pods func(uid string) bool) {
	maps.DeleteFunc(c.words, func(uid string, _ []string) bool { return !pods(uid) })
	c.tidy()
}

// held lists what there is, in messages of about so many resources.
func (c cache) held(most int) (out [][]*nodev1.Held) {
	var part []*nodev1.Held
	n := 0
	for _, name := range slices.Sorted(maps.Keys(c.layers)) {
		for url, of := range c.layers[name] {
			h := &nodev1.Held{Layer: name, Type: url, Versions: map[string]string{}}
			for _, r := range of {
				h.Versions[r.Name] = r.Version
				if n++; n >= most {
					out = append(out, append(part, h))
					part, n, h = nil, 0, &nodev1.Held{Layer: name, Type: url, Versions: map[string]string{}}
				}
			}
			if len(h.Versions) > 0 {
				part = append(part, h)
			}
		}
	}
	if len(part) > 0 {
		out = append(out, part)
	}
	return out
}
