package nodexds

import (
	"cmp"
	"maps"
	"slices"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Layers are what Pilot has.
type Layers interface {
	// Resources calls yield for each resource of a layer that a word has named, with its type.
	Resources(layer string, yield func(typeURL string, r *deltaxds.Resource))
	// Resource returns one, or nil if the layer has none of the name.
	Resource(layer, typeURL, name string) *deltaxds.Resource
}

// Session is Pilot's side of the stream with one agent: a state machine without I/O or clock. It is not safe for concurrent use.
type Session struct {
	layers Layers

	number   uint64 // of the last update
	received uint64 // the last that the agent has applied
	asOf     uint64 // with which proxies have come to where they are

	said   map[string][]string // the words that the agent has, by the pod's UID
	due    map[string]word     // words that are to hold, of pods that Pilot has spoken of
	unsaid map[string]bool     // pods of which the two may differ
	spoken map[string]uint64   // by which update they became the same

	held  map[string]*held                      // what the agent has of layers
	dirty map[string]map[string]map[string]bool // layer → type → names that may differ
}

type word struct {
	layers  []string
	refused string
}

// held is what the agent has of a layer.
type held struct {
	follows  bool                         // it is told of changes
	versions map[string]map[string]string // by type and name
	changed  map[string]uint64            // by type, the last update with a change
}

func newHeld() *held {
	return &held{versions: map[string]map[string]string{}, changed: map[string]uint64{}}
}

// NewSession returns the session of an agent that has nothing.
func NewSession(layers Layers) *Session {
	return &Session{
		layers: layers, said: map[string][]string{}, due: map[string]word{}, unsaid: map[string]bool{}, spoken: map[string]uint64{},
		held: map[string]*held{}, dirty: map[string]map[string]map[string]bool{},
	}
}

// Open takes what the agent has from an earlier stream, before anything else.
func (s *Session) Open(r *nodev1.Report) {
	for _, p := range r.GetPods() {
		if len(p.GetLayers()) > 0 {
			s.said[p.GetUid()] = p.GetLayers()
		}
	}
	for _, h := range r.GetHeld() {
		of := s.held[h.GetLayer()]
		if of == nil {
			of = newHeld()
			s.held[h.GetLayer()] = of
		}
		versions := of.versions[h.GetType()]
		if versions == nil {
			of.versions[h.GetType()] = h.GetVersions()
			continue
		}
		maps.Copy(versions, h.GetVersions())
	}
}

// Speak has a pod's proxy have the layers, if there are any; refused says why there are none.
func (s *Session) Speak(uid string, layers []string, refused string) {
	s.due[uid], s.unsaid[uid] = word{layers, refused}, true
}

// Forget has the word about a pod forgotten, which the agent does not have any more.
func (s *Session) Forget(uid string) {
	delete(s.due, uid)
	s.unsaid[uid] = true
}

// Mark says that a resource of a layer may have changed, come or gone. It returns whether that matters here.
func (s *Session) Mark(layer, typeURL, name string) bool {
	if of := s.held[layer]; of == nil || !of.follows {
		return false // whoever comes to follow it looks at everything
	}
	types := s.dirty[layer]
	if types == nil {
		types = map[string]map[string]bool{}
		s.dirty[layer] = types
	}
	if types[typeURL] == nil {
		types[typeURL] = map[string]bool{}
	}
	types[typeURL][name] = true
	return true
}

// Take notes how far the agent and the proxies have come.
func (s *Session) Take(r *nodev1.Report) {
	s.received = max(s.received, min(r.GetReceived(), s.number))
	s.asOf = max(s.asOf, min(r.GetAsOf(), s.number))
}

// Waits says whether an update is on its way.
func (s *Session) Waits() bool { return s.received < s.number }

// Next returns the update that leads to what holds now. Nil: there is none, or the last one is on its way. The first says that the agent has
// been heard, also where nothing differs.
func (s *Session) Next() *Outgoing {
	if s.Waits() {
		return nil
	}
	u := &Outgoing{Number: s.number + 1}
	if len(s.unsaid) > 0 || s.number == 0 {
		u.Words = s.words(u.Number)
		s.follow(u)
	}
	for _, layer := range slices.Sorted(maps.Keys(s.dirty)) {
		of := s.held[layer]
		for _, url := range slices.Sorted(maps.Keys(s.dirty[layer])) {
			c := Change{Layer: layer, Type: url}
			for _, name := range slices.Sorted(maps.Keys(s.dirty[layer][url])) {
				of.compare(&c, name, s.layers.Resource(layer, url, name))
			}
			u.add(of, c)
		}
	}
	clear(s.dirty)
	if len(u.Words)+len(u.Changes) == 0 && s.number > 0 {
		return nil
	}
	s.number = u.Number
	return u
}

// words returns the words that the agent does not have, and counts them as said.
func (s *Session) words(number uint64) (out []*nodev1.Word) {
	for _, uid := range slices.Sorted(maps.Keys(s.unsaid)) {
		due, said := s.due[uid], s.said[uid]
		if !slices.Equal(due.layers, said) || due.refused != "" {
			out = append(out, &nodev1.Word{Uid: uid, Layers: due.layers, Refused: due.refused})
			s.spoken[uid] = number
		}
		if len(due.layers) > 0 {
			s.said[uid] = due.layers
		} else {
			delete(s.said, uid)
			delete(s.spoken, uid)
		}
	}
	clear(s.unsaid)
	return out
}

// follow has the agent have the layers that words name, and forget what it has of others.
func (s *Session) follow(u *Outgoing) {
	named, wanted := map[string]bool{}, map[string]bool{}
	for uid, layers := range s.said {
		_, spoken := s.due[uid]
		for _, l := range layers {
			named[l] = true
			wanted[l] = wanted[l] || spoken
		}
	}
	for l := range s.held {
		if !named[l] {
			delete(s.held, l)
			delete(s.dirty, l)
		}
	}
	for _, l := range slices.Sorted(maps.Keys(named)) {
		of := s.held[l]
		switch {
		case !wanted[l]: // of a pod that Pilot does not speak of, or not yet: it keeps what it has, for Pilot may not have the layer
			if of != nil {
				of.follows = false
				delete(s.dirty, l)
			}
		case of == nil:
			of = newHeld()
			s.held[l] = of
			s.compare(u, l, of)
		case !of.follows:
			s.compare(u, l, of)
		}
	}
}

// compare adds how a whole layer differs from what the agent has.
func (s *Session) compare(u *Outgoing, layer string, of *held) {
	of.follows = true
	changes := map[string]*Change{}
	change := func(url string) *Change {
		if changes[url] == nil {
			changes[url] = &Change{Layer: layer, Type: url}
		}
		return changes[url]
	}
	there := map[string]map[string]bool{}
	s.layers.Resources(layer, func(url string, r *deltaxds.Resource) {
		if there[url] == nil {
			there[url] = map[string]bool{}
		}
		there[url][r.Name] = true
		of.compare(change(url), r.Name, r)
	})
	for url, versions := range of.versions {
		for name := range versions {
			if !there[url][name] {
				of.compare(change(url), name, nil)
			}
		}
	}
	for _, url := range slices.Sorted(maps.Keys(changes)) {
		c := changes[url]
		slices.SortFunc(c.Resources, func(a, b *deltaxds.Resource) int { return cmp.Compare(a.Name, b.Name) })
		slices.Sort(c.Removed)
		u.add(of, *c)
	}
}

// compare adds how a resource differs from what the agent has, and counts it as said.
func (h *held) compare(c *Change, name string, r *deltaxds.Resource) {
	versions := h.versions[c.Type]
	last, had := versions[name]
	switch {
	case r != nil && r.Version != last:
		if versions == nil {
			versions = map[string]string{}
			h.versions[c.Type] = versions
		}
		versions[r.Name] = r.Version
		c.Resources = append(c.Resources, r)
	case r == nil && had:
		delete(versions, name)
		c.Removed = append(c.Removed, name)
	}
}

func (o *Outgoing) add(of *held, c Change) {
	if len(c.Resources)+len(c.Removed) == 0 {
		return
	}
	of.changed[c.Type] = o.Number
	o.Changes = append(o.Changes, c)
}

// Behind says whether what a pod has of a type is not known yet to have reached its proxy: it is unsent, or the agent has not said yet how far the
// proxy has come with it.
func (s *Session) Behind(uid, typeURL string) bool {
	return s.unsettled(uid) || slices.ContainsFunc(s.said[uid], func(layer string) bool { return s.behind(layer, typeURL) })
}

// BehindIn is Behind for what the pod has in one of its layers.
func (s *Session) BehindIn(uid, layer, typeURL string) bool {
	return s.unsettled(uid) || !slices.Contains(s.said[uid], layer) || s.behind(layer, typeURL)
}

// unsettled says whether the agent has not said yet how far the proxy has come with the word about a pod.
func (s *Session) unsettled(uid string) bool { return s.unsaid[uid] || s.spoken[uid] > s.asOf }

func (s *Session) behind(layer, typeURL string) bool {
	of := s.held[layer]
	return len(s.dirty[layer][typeURL]) > 0 || of != nil && of.changed[typeURL] > s.asOf
}
