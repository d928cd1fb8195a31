// Package push has the bytes of resources, each made and marshalled once for all the proxies that share it, and serves them over delta
// xDS. It wakes only the proxies to which a change matters. What there is, and for whom, is package catalog's to say.
package push

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Store is the resources and the proxies that take them.
type Store struct {
	settings compile.Settings
	metrics  *Metrics
	log      *slog.Logger

	mu      sync.Mutex
	catalog *catalog.Catalog
	bytes   map[catalog.Resource]*deltaxds.Resource // only what a proxy has asked for
	clients map[*client]bool
	having  map[catalog.Layer]map[*client]bool
	arrived chan struct{} // closed at every change of pods
}

// NewStore returns a store that shows the snapshot.
func NewStore(settings compile.Settings, snap *registry.Snapshot, metrics *Metrics, log *slog.Logger) *Store {
	return &Store{
		settings: settings, metrics: metrics, log: log, catalog: catalog.New(settings, snap),
		bytes:   map[catalog.Resource]*deltaxds.Resource{},
		clients: map[*client]bool{}, having: map[catalog.Layer]map[*client]bool{}, arrived: make(chan struct{}),
	}
}

// Apply moves on to a snapshot, given what changed since the last.
func (s *Store) Apply(snap *registry.Snapshot, changes []registry.Change) {
	if len(changes) == 0 {
		return
	}
	s.mu.Lock()
	news := news{}
	touched, following := s.catalog.Apply(snap, changes)
	for _, t := range touched {
		concerned := t.Moves
		if len(t.Stays) == 0 {
			delete(s.bytes, t.Resource) // who gets it will ask
		} else if s.renew(t.Resource) {
			concerned = append(concerned, t.Stays...)
		}
		for _, l := range concerned {
			for c := range s.having[l] {
				news.add(c, t.Resource)
			}
		}
	}
	ended := s.follow(changes, following, news)
	s.mu.Unlock()
	// Streams hold their own lock while they read from the store, so they are told without the store's.
	now := time.Now()
	for c, types := range news {
		for url, names := range types {
			c.dirty(now, url, names...)
		}
	}
	for _, c := range ended {
		c.end()
	}
}

// news are the names of what may differ for clients, by type.
type news map[*client]map[string][]string

func (n news) add(c *client, r catalog.Resource) {
	if n[c] == nil {
		n[c] = map[string][]string{}
	}
	n[c][r.Type()] = append(n[c][r.Type()], r.Name())
}

// renew makes a resource anew, if anybody has it, and reports whether those who share it are to be told.
func (s *Store) renew(r catalog.Resource) bool {
	old := s.bytes[r]
	if old == nil {
		return true // nobody has it: whoever has subscribed to it will ask
	}
	delete(s.bytes, r)
	now := s.get(r)
	if now == nil || now.Version != old.Version {
		return true
	}
	s.bytes[r] = old
	return false
}

// follow looks at the pods of connected proxies: one whose labels change has become another subject, as one whose Sidecar does. It
// returns the clients whose pod has become another one's, or whose certificate comes in another way.
func (s *Store) follow(changes []registry.Change, following []*registry.Pod, news news) (ended []*client) {
	woken := false
	for _, ch := range changes {
		if ch.Kind != registry.Pods {
			continue
		}
		woken = true
		pod, _ := ch.New.(*registry.Pod)
		if pod == nil {
			continue // the proxy of a pod that was deleted drains with what it has
		}
		for c := range s.having[catalog.OfPod(ch.ID)] {
			if pod.UID != c.uid || pod.ServiceAccount != c.identity.ServiceAccount || pod.Delivery != c.delivery {
				ended = append(ended, c)
			}
		}
	}
	for _, pod := range following {
		for c := range s.having[catalog.OfPod(pod.ID)] {
			if !slices.Contains(ended, c) {
				s.move(c, pod, news)
			}
		}
	}
	if woken {
		close(s.arrived)
		s.arrived = make(chan struct{})
	}
	return ended
}

func (s *Store) move(c *client, pod *registry.Pod, news news) {
	now, gone, changed := s.catalog.Follow(c.subject, pod)
	if now == c.subject {
		return
	}
	s.subscribe(c, now)
	s.forget(gone)
	for _, r := range changed {
		news.add(c, r)
	}
}

// subscribe has a client hear of what a subject has, and of nothing else.
func (s *Store) subscribe(c *client, to catalog.Subject) {
	s.unsubscribe(c)
	c.subject = to
	for _, l := range to.Layers() {
		if s.having[l] == nil {
			s.having[l] = map[*client]bool{}
		}
		s.having[l][c] = true
	}
}

func (s *Store) unsubscribe(c *client) {
	for _, l := range c.subject.Layers() {
		if delete(s.having[l], c); len(s.having[l]) == 0 {
			delete(s.having, l)
		}
	}
}

// forget drops what nobody can ask for any more.
func (s *Store) forget(gone []catalog.Resource) {
	for _, r := range gone {
		delete(s.bytes, r)
	}
}

// get returns a resource, made now if no proxy has asked for it before, or nil if there is none. It is called with mu held.
func (s *Store) get(r catalog.Resource) *deltaxds.Resource {
	if made := s.bytes[r]; made != nil {
		return made
	}
	s.metrics.recomputes.Inc()
	msg := s.catalog.Make(r)
	if msg == nil {
		return nil
	}
	made, err := deltaxds.NewResource(r.Name(), msg)
	if err != nil {
		s.log.Error("a resource cannot be marshalled", "type", r.Type(), "name", r.Name(), "error", err)
		return nil
	}
	s.metrics.marshals.Inc()
	s.bytes[r] = made
	return made
}
