// Package push has the bytes of resources, each made and marshalled once for all the nodes that share it, and serves them to agents, each
// for the pods of its node. It wakes only the agents to which a change matters. What there is, and for whom, is package catalog's to say;
// how agents are spoken to, package nodexds'.
package push

import (
	"log/slog"
	"sync"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Store is the resources and the agents that take them.
type Store struct {
	settings compile.Settings
	metrics  *Metrics
	log      *slog.Logger

	mu      sync.Mutex
	catalog *catalog.Catalog
	bytes   map[catalog.Resource]*deltaxds.Resource // only what an agent follows

	agents    map[*agent]bool
	following map[catalog.Layer]map[*agent]bool // those with a pod that has the layer
	pods      map[string]map[*member]bool       // of agents, by "namespace/name"
	admitted  int                               // how many of them are subjects
	full      map[*member]bool                  // those that there is no room for
	proxies   int                               // that are connected, by what the agents say
	progress  progress                          // of them with policies
}

// NewStore returns a store that shows the snapshot.
func NewStore(settings compile.Settings, snap *registry.Snapshot, metrics *Metrics, log *slog.Logger) *Store {
	return &Store{
		settings: settings, metrics: metrics, log: log, catalog: catalog.New(settings, snap),
		bytes:  map[catalog.Resource]*deltaxds.Resource{},
		agents: map[*agent]bool{}, following: map[catalog.Layer]map[*agent]bool{}, pods: map[string]map[*member]bool{}, full: map[*member]bool{}, progress: newProgress(),
	}
}

// Apply moves on to a snapshot, given what changed since the last.
func (s *Store) Apply(snap *registry.Snapshot, changes []registry.Change) {
	if len(changes) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.turn(snap, changes)
	touched, following := s.catalog.Apply(snap, changes)
	for _, t := range touched {
		concerned := t.Moves
		if len(t.Stays) == 0 {
			delete(s.bytes, t.Resource) // who gets it will ask
		} else if s.renew(t.Resource) {
			concerned = append(concerned, t.Stays...)
		}
		for _, l := range concerned {
			s.overdue(t.Resource, l)
			for a := range s.following[l] {
				if a.session.Mark(l.String(), t.Type(), t.Name()) {
					a.changed(now)
				}
			}
		}
	}
	for _, ch := range changes {
		if ch.Kind == registry.Pods {
			s.lookAt(ch.ID)
		}
	}
	for _, p := range following {
		s.lookAt(p.ID)
	}
}

func (s *Store) lookAt(id string) {
	for p := range s.pods[id] {
		s.look(p)
	}
}

// renew makes a resource anew, if anybody has it, and reports whether those who share it are to be told.
func (s *Store) renew(r catalog.Resource) bool {
	old := s.bytes[r]
	if old == nil {
		return true // nobody has it yet
	}
	delete(s.bytes, r)
	now := s.get(r)
	if now == nil || now.Version != old.Version {
		return true
	}
	s.bytes[r] = old
	return false
}

// forget drops what nobody can ask for any more.
func (s *Store) forget(gone []catalog.Resource) {
	for _, r := range gone {
		delete(s.bytes, r)
	}
}

// get returns a resource, made now if no agent has it yet, or nil if there is none. It is called with mu held.
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
