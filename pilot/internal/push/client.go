package push

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// client is one connected proxy, and the Source of its stream.
type client struct {
	store    *Store
	node     string
	pod      string // namespace/name
	uid      string // of the pod
	identity spiffe.ID
	delivery delivery.Way
	since    time.Time
	stream   *deltaxds.Stream
	end      func()

	subject catalog.Subject // guarded by the store's mu

	mu      sync.Mutex
	waiting time.Time // when the oldest change came that is not sent yet
}

func (c *client) dirty(now time.Time, typeURL string, names ...string) {
	c.mu.Lock()
	if c.waiting.IsZero() {
		c.waiting = now
	}
	c.mu.Unlock()
	c.stream.Dirty(typeURL, names...)
}

// sent says how long the oldest change had waited.
func (c *client) sent() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting.IsZero() {
		return 0, false
	}
	d := time.Since(c.waiting)
	c.waiting = time.Time{}
	return d, true
}

// Resource implements deltaxds.Source.
func (c *client) Resource(typeURL, name string) (*deltaxds.Resource, bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if r := c.store.catalog.Find(c.subject, typeURL, name); r != nil {
		return c.store.get(r), true
	}
	return nil, true
}

// Wildcard implements deltaxds.Source.
func (c *client) Wildcard(typeURL string) ([]string, bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return c.store.catalog.Names(c.subject, typeURL), true
}

// Subscribed implements deltaxds.Source. Pilot makes what is asked for when it is asked for.
func (c *client) Subscribed(string, []string, []string) {}

// parseNode reads a node ID, sidecar~<pod IP>~<pod>.<namespace>~<domain>.
func parseNode(id string) (ip, pod string, err error) {
	parts := strings.Split(id, "~")
	if len(id) > 1024 || len(parts) != 4 || parts[0] != "sidecar" {
		return "", "", fmt.Errorf("node ID %.100q is not sidecar~<pod IP>~<pod>.<namespace>~<domain>", id)
	}
	i := strings.LastIndexByte(parts[2], '.')
	if i <= 0 || i == len(parts[2])-1 {
		return "", "", fmt.Errorf("node ID %.100q names no pod", id)
	}
	return parts[1], parts[2][i+1:] + "/" + parts[2][:i], nil
}

func (s *Store) add(c *client, pod *registry.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.catalog.Snapshot().Pod(c.pod); now != nil {
		pod = now // it may have changed since the client was let in
	}
	s.clients[c] = true
	s.subscribe(c, s.catalog.Join(pod))
	s.metrics.connections.Set(float64(len(s.clients)))
}

func (s *Store) remove(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	s.unsubscribe(c)
	s.forget(s.catalog.Leave(c.subject))
	s.metrics.connections.Set(float64(len(s.clients)))
}
