// Package push keeps Envoy's resources, each made and marshalled once for all the proxies that share it, and serves them
// over delta xDS. A change makes anew only what depends on it, and wakes only the proxies to which it matters.
package push

import (
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Store is the resources and the proxies that take them.
type Store struct {
	settings compile.Settings
	metrics  *Metrics
	log      *slog.Logger

	mu       sync.Mutex
	snap     *registry.Snapshot
	everyone map[string][]string        // of the snapshot, what sharedNames found, by type
	cache    map[key]*deltaxds.Resource // only what a proxy has asked for
	classes  map[string]*class          // of connected proxies
	pods     map[string]*registry.Pod   // of connected proxies, as last known
	clients  map[*client]bool
	arrived  chan struct{} // closed at every change of pods
}

type class struct {
	class    compile.Class
	clients  int
	compiled *compile.Workload
}

// NewStore returns a store that shows the snapshot.
func NewStore(settings compile.Settings, snap *registry.Snapshot, metrics *Metrics, log *slog.Logger) *Store {
	return &Store{
		settings: settings, metrics: metrics, log: log, snap: snap,
		everyone: map[string][]string{}, cache: map[key]*deltaxds.Resource{}, classes: map[string]*class{}, pods: map[string]*registry.Pod{},
		clients: map[*client]bool{}, arrived: make(chan struct{}),
	}
}

// Apply moves on to a snapshot, given what changed since the last.
func (s *Store) Apply(snap *registry.Snapshot, changes []registry.Change) {
	if len(changes) == 0 {
		return
	}
	s.mu.Lock()
	s.snap = snap
	clear(s.everyone)
	d := dirt{}
	effects := compile.EffectsOf(snap, s.settings, changes)
	s.shared(effects, d)
	s.ofClasses(effects, d)
	moved := s.ofPods(changes, d)
	clients := slices.Collect(maps.Keys(s.clients))
	s.mu.Unlock()
	// Streams hold their own lock while they read from the store, so they are told without the store's.
	now := time.Now()
	for _, c := range clients {
		for sc, types := range d {
			if c.sees(sc) {
				for typeURL, names := range types {
					c.dirty(now, typeURL, slices.Collect(maps.Keys(names))...)
				}
			}
		}
	}
	for _, c := range moved {
		c.end()
	}
}

// dirt is what changed, by who shares it.
type dirt map[scope]map[string]map[string]bool

func (d dirt) add(k key) {
	if d[k.scope] == nil {
		d[k.scope] = map[string]map[string]bool{}
	}
	if d[k.scope][k.typeURL] == nil {
		d[k.scope][k.typeURL] = map[string]bool{}
	}
	d[k.scope][k.typeURL][k.name] = true
}

// renew makes a resource anew if anyone has it, and notes it where it differs.
func (s *Store) renew(k key, d dirt) {
	old, had := s.cache[k]
	if !had {
		d.add(k) // nobody has it: whoever subscribes to it will ask
		return
	}
	delete(s.cache, k)
	now := s.get(k)
	if now == nil || now.Version != old.Version {
		d.add(k)
		return
	}
	s.cache[k] = old
}

// shared renews what is shared by all proxies.
func (s *Store) shared(e compile.Effects, d dirt) {
	if len(s.clients) == 0 {
		clear(s.cache)
		return
	}
	for _, id := range slices.Sorted(maps.Keys(e.Services)) {
		s.clusters(id, e.Ports[id], deltaxds.ClusterType, d)
	}
	for _, id := range slices.Sorted(maps.Keys(e.Endpoints)) {
		s.clusters(id, e.Ports[id], deltaxds.EndpointType, d)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Listeners)) {
		s.renew(key{deltaxds.ListenerType, global, name}, d)
	}
	if e.Revocations {
		for _, n := range translate.RevocationNames() {
			s.renew(key{deltaxds.ExtensionConfigType, global, n}, d)
		}
	}
}

func (s *Store) clusters(serviceID string, ports map[uint32]bool, typeURL string, d dirt) {
	numbers := maps.Clone(ports)
	svc := s.snap.Service(serviceID)
	if svc != nil {
		if numbers == nil {
			numbers = map[uint32]bool{}
		}
		for _, p := range svc.Ports {
			numbers[p.Number] = true
		}
	}
	for n := range numbers {
		name := istiocompat.OutboundCluster(n, "", hostOf(serviceID))
		if typeURL != deltaxds.ClusterType {
			s.renew(key{typeURL, global, name}, d)
			continue
		}
		for _, delivery := range deliveries {
			s.renew(key{typeURL, ofDelivery(delivery), name}, d)
		}
	}
}

// ofClasses renews the inbound side of the classes that changes touch.
func (s *Store) ofClasses(e compile.Effects, d dirt) {
	for id, c := range s.classes {
		if slices.ContainsFunc(e.Classes, func(sel compile.ClassSelector) bool { return sel.Selects(c.class) }) {
			s.renewClass(id, c, d)
		}
	}
}

// renewClass makes anew what can have changed.
func (s *Store) renewClass(id string, c *class, d dirt) {
	old := c.compiled
	c.compiled = nil
	now := s.workload(id)
	sc := scope{classScope, id}
	if old == nil || !translate.SameInboundListener(s.settings, old, now) {
		s.renew(key{deltaxds.ListenerType, sc, translate.VirtualInbound}, d)
	}
	if old != nil && old.Other == now.Other && slices.Equal(old.Ports, now.Ports) && reflect.DeepEqual(old.Policies, now.Policies) {
		return
	}
	for _, n := range translate.AuthorizationNames() {
		s.renew(key{deltaxds.ExtensionConfigType, sc, n}, d)
	}
}

// ofPods follows the pods of connected proxies: a pod whose labels change becomes one of another class. It returns the
// clients whose pod has become another one's, or whose certificate comes in another way.
func (s *Store) ofPods(changes []registry.Change, d dirt) (gone []*client) {
	woken := false
	for _, ch := range changes {
		if ch.Kind != registry.Pods {
			continue
		}
		woken = true
		pod, _ := ch.New.(*registry.Pod)
		if pod == nil || s.pods[ch.ID] == nil {
			continue // a pod that was deleted drains with what it has
		}
		for c := range s.clients {
			if c.pod != ch.ID {
				continue
			}
			if pod.UID != s.pods[ch.ID].UID || pod.ServiceAccount != c.identity.ServiceAccount || pod.Delivery != c.delivery {
				gone = append(gone, c)
				continue
			}
			s.follow(c, pod, d)
		}
		s.pods[ch.ID] = pod
	}
	if woken {
		close(s.arrived)
		s.arrived = make(chan struct{})
	}
	return gone
}

func (s *Store) follow(c *client, pod *registry.Pod, d dirt) {
	old := s.pods[c.pod]
	if old.Probes != pod.Probes || old.IP != pod.IP {
		sc := scope{podScope, c.pod}
		names := append(probeNames(old), probeNames(pod)...)
		s.pods[c.pod] = pod
		for _, n := range names {
			s.renew(key{deltaxds.ClusterType, sc, n}, d)
		}
		s.renew(key{deltaxds.ListenerType, sc, translate.HealthListener}, d)
	}
	now := compile.ClassOf(pod)
	if now.Key() == c.class {
		return
	}
	s.leaveClass(c.class)
	c.setClass(now.Key())
	s.joinClass(now)
	sc := scope{classScope, c.class}
	d.add(key{deltaxds.ListenerType, sc, translate.VirtualInbound})
	for _, n := range translate.AuthorizationNames() {
		d.add(key{deltaxds.ExtensionConfigType, sc, n})
	}
}

func (s *Store) joinClass(c compile.Class) {
	id := c.Key()
	if s.classes[id] == nil {
		s.classes[id] = &class{class: c}
	}
	s.classes[id].clients++
}

func (s *Store) leaveClass(id string) {
	c := s.classes[id]
	if c.clients--; c.clients > 0 {
		return
	}
	delete(s.classes, id)
	s.forget(scope{classScope, id})
}

func (s *Store) forget(sc scope) {
	for k := range s.cache {
		if k.scope == sc {
			delete(s.cache, k)
		}
	}
}

// get returns a resource, made now if no proxy has asked for it before. It is called with mu held.
func (s *Store) get(k key) *deltaxds.Resource {
	if r := s.cache[k]; r != nil {
		return r
	}
	msg := s.compute(k)
	if msg == nil {
		return nil
	}
	return s.keep(k, msg)
}

func (s *Store) keep(k key, msg proto.Message) *deltaxds.Resource {
	r, err := deltaxds.NewResource(k.name, msg)
	if err != nil {
		s.log.Error("a resource cannot be marshalled", "type", k.typeURL, "name", k.name, "error", err)
		return nil
	}
	s.metrics.marshals.Inc()
	s.cache[k] = r
	return r
}
