// Package relay carries xDS between a pod's Envoy and Pilot. It ends both streams: what Pilot last sent stays here, so an
// Envoy that starts while Pilot is away is served, and a Pilot that comes back sends only what has changed.
package relay

import (
	"maps"
	"slices"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// cache is what one pod's Envoy wants and what Pilot has given. It implements deltaxds.Source.
//
// A stream calls it while it holds the stream's own lock. So nothing here calls a stream; that is left to the caller,
// without the cache's lock.
type cache struct {
	mu    sync.Mutex
	types map[string]*typeCache
	wake  chan struct{} // capacity one: what Envoy wants has changed
}

type typeCache struct {
	resources map[string]*deltaxds.Resource
	absent    map[string]bool // names of which Pilot has said that they do not exist
	wanted    map[string]bool // names Envoy subscribes to
	wildcard  bool            // Envoy subscribes to everything
	complete  bool            // Pilot has answered the wildcard

	subscribe, unsubscribe map[string]bool // what Pilot has not been told yet
}

func newCache() *cache { return &cache{types: map[string]*typeCache{}, wake: make(chan struct{}, 1)} }

// of is called with mu held.
func (c *cache) of(typeURL string) *typeCache {
	t := c.types[typeURL]
	if t == nil {
		t = &typeCache{
			resources: map[string]*deltaxds.Resource{}, absent: map[string]bool{}, wanted: map[string]bool{},
			subscribe: map[string]bool{}, unsubscribe: map[string]bool{},
		}
		c.types[typeURL] = t
	}
	return t
}

func (c *cache) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Resource implements deltaxds.Source.
func (c *cache) Resource(typeURL, name string) (*deltaxds.Resource, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(typeURL)
	if r := t.resources[name]; r != nil {
		return r, true
	}
	// A name that is asked for beside everything has an answer of its own.
	return nil, t.absent[name] || (t.wildcard && t.complete && !t.wanted[name])
}

// Wildcard implements deltaxds.Source.
func (c *cache) Wildcard(typeURL string) ([]string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(typeURL)
	if !t.wildcard {
		t.wildcard = true
		t.subscribe["*"] = true
		c.signal()
	}
	return slices.Collect(maps.Keys(t.resources)), t.complete
}

// Subscribed implements deltaxds.Source.
func (c *cache) Subscribed(typeURL string, added, removed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(typeURL)
	for _, name := range added {
		if !t.wanted[name] {
			t.wanted[name] = true
			t.subscribe[name] = true
			delete(t.unsubscribe, name)
		}
	}
	for _, name := range removed {
		if t.wanted[name] {
			delete(t.wanted, name)
			if !t.wildcard { // of everything, it is still a part
				delete(t.resources, name)
			}
			delete(t.absent, name)
			delete(t.subscribe, name)
			t.unsubscribe[name] = true
		}
	}
	c.signal()
}

// keep drops the names of a type that are not among those given.
func (c *cache) keep(typeURL string, names []string) {
	c.mu.Lock()
	dropped := slices.DeleteFunc(slices.Collect(maps.Keys(c.of(typeURL).wanted)), func(n string) bool { return slices.Contains(names, n) })
	c.mu.Unlock()
	if len(dropped) > 0 {
		c.Subscribed(typeURL, nil, dropped)
	}
}

// apply takes a response of Pilot and returns the names it changed.
func (c *cache) apply(resp *discovery.DeltaDiscoveryResponse) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(resp.GetTypeUrl())
	var changed []string
	for _, wire := range resp.GetResources() {
		name := wire.GetName()
		if !t.wildcard && !t.wanted[name] {
			continue // unsubscribed meanwhile
		}
		t.resources[name] = deltaxds.FromWire(wire)
		delete(t.absent, name)
		changed = append(changed, name)
	}
	for _, name := range resp.GetRemovedResources() {
		delete(t.resources, name)
		if t.wanted[name] {
			t.absent[name] = true
		}
		changed = append(changed, name)
	}
	if t.wildcard {
		t.complete = true
	}
	return changed
}

// everything says whether Envoy subscribes to all that there is of a type.
func (c *cache) everything(typeURL string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of(typeURL).wildcard
}

// asked lists the types of which Envoy has asked for something.
func (c *cache) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.types))
}

// another is the version under which Pilot is told of what the proxy has in another version, or may have still.
const another = "another"

// initial returns the requests that open a stream to Pilot: every subscription, with the versions that are here already.
// Those that the proxy has not taken do not count, or Pilot would believe that it has them: behind says which these are.
func (c *cache) initial(behind map[string]lag) []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, url := range slices.Sorted(maps.Keys(c.types)) {
		t := c.types[url]
		clear(t.subscribe)
		clear(t.unsubscribe)
		if !t.wildcard && len(t.wanted) == 0 {
			continue
		}
		req := &discovery.DeltaDiscoveryRequest{
			TypeUrl: url, ResourceNamesSubscribe: slices.Sorted(maps.Keys(t.wanted)), InitialResourceVersions: map[string]string{},
		}
		if t.wildcard {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, "*")
		}
		for name, r := range t.resources {
			req.InitialResourceVersions[name] = r.Version
			if behind[url].all {
				req.InitialResourceVersions[name] = another
			}
		}
		for name := range behind[url].names {
			if t.wildcard || t.wanted[name] {
				req.InitialResourceVersions[name] = another
			}
		}
		out = append(out, req)
	}
	return out
}

// pending returns what has to be said to Pilot about subscriptions since the last call.
func (c *cache) pending() []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, url := range slices.Sorted(maps.Keys(c.types)) {
		t := c.types[url]
		if len(t.subscribe)+len(t.unsubscribe) == 0 {
			continue
		}
		out = append(out, &discovery.DeltaDiscoveryRequest{
			TypeUrl: url, ResourceNamesSubscribe: slices.Sorted(maps.Keys(t.subscribe)), ResourceNamesUnsubscribe: slices.Sorted(maps.Keys(t.unsubscribe)),
		})
		clear(t.subscribe)
		clear(t.unsubscribe)
	}
	return out
}

// empty says whether Envoy has asked for anything yet.
func (c *cache) empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.types {
		if t.wildcard || len(t.wanted) > 0 {
			return false
		}
	}
	return true
}
