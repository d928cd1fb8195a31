package nodexds

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Node is the pods of a node, what Pilot has said for them, and their proxies.
//
// A stream of a proxy calls it while it holds the stream's own lock. So no stream is called with the Node's.
type Node struct {
	clock clock.Clock

	begin   sync.Mutex // held while an update is applied, when no stream begins
	mu      sync.Mutex
	cache   cache
	pods    map[string]*pod // by UID
	applied uint64          // the last update that all streams of proxies have been told of

	urgent chan struct{} // capacity one: pods have come or gone, or an update has been applied
	moved  chan struct{} // capacity one: a proxy has come to something
}

// pod is one that has a socket.
type pod struct {
	uid, name string
	proxies   []*Proxy // connected ones; the last to come is the one that counts
	lost      *lost    // if the last one has stalled, until another comes
}

// lost is a proxy that has stalled. It is still there, with what it had.
type lost struct {
	proxy   *Proxy
	status  map[string]deltaxds.Status
	stalled *deltaxds.Stalled
}

// New returns a node without pods.
func New(cl clock.Clock) *Node {
	return &Node{clock: cl, cache: newCache(), pods: map[string]*pod{}, urgent: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
}

// Add adds a pod (name: namespace/name), which has a socket from now on.
func (n *Node) Add(uid, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods[uid] == nil {
		n.pods[uid] = &pod{uid: uid, name: name}
	}
	signal(n.urgent)
}

// Remove forgets a pod. What it had stays until Pilot knows, since both have to forget the same.
func (n *Node) Remove(uid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, uid)
	signal(n.urgent)
}

func (n *Node) nameOf(uid string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pods[uid]; p != nil {
		return p.name
	}
	return ""
}

// Proxy is one that is connected to a pod's socket, and the Source of its stream.
type Proxy struct {
	node   *Node
	uid    string
	id     string // by which it calls itself
	since  time.Time
	stream *deltaxds.Stream // set by Begin
}

// Proxy returns the source of a proxy that has connected and calls itself id. Begin comes next.
func (n *Node) Proxy(uid, id string) *Proxy {
	return &Proxy{node: n, uid: uid, id: id, since: n.clock.Now()}
}

// Begin has the proxy's stream be told of what changes, before it asks for anything.
func (p *Proxy) Begin(stream *deltaxds.Stream) {
	p.stream = stream
	p.node.begin.Lock()
	defer p.node.begin.Unlock()
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	if pod := p.node.pods[p.uid]; pod != nil {
		pod.proxies = append(pod.proxies, p)
		pod.lost = nil
	}
	signal(p.node.moved)
}

// End says that the stream has ended, and how.
func (p *Proxy) End(err error) {
	status := p.stream.Status()
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	pod := p.node.pods[p.uid]
	if pod == nil {
		return
	}
	pod.proxies = slices.DeleteFunc(pod.proxies, func(other *Proxy) bool { return other == p })
	var stalled *deltaxds.Stalled
	if len(pod.proxies) == 0 && errors.As(err, &stalled) {
		pod.lost = &lost{p, status, stalled}
	}
	signal(p.node.moved)
}

// Resource implements deltaxds.Source.
func (p *Proxy) Resource(url, name string) (*deltaxds.Resource, bool) {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	return p.node.cache.find(p.uid, url, name)
}

// Wildcard implements deltaxds.Source.
func (p *Proxy) Wildcard(url string) ([]string, bool) {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	return p.node.cache.names(p.uid, url)
}

// Subscribed implements deltaxds.Source. All that a proxy may ask for is here already.
func (p *Proxy) Subscribed(string, []string, []string) {}

// Stepped implements deltaxds.Follower.
func (p *Proxy) Stepped() { signal(p.node.moved) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// apply takes an update, in all its parts, between two steps of every proxy's stream.
func (n *Node) apply(parts []*nodev1.Update) {
	n.begin.Lock()
	defer n.begin.Unlock()
	n.mu.Lock()
	streams := map[*deltaxds.Stream]string{}
	for uid, pod := range n.pods {
		for _, p := range pod.proxies {
			streams[p.stream] = uid
		}
	}
	n.mu.Unlock()
	deltaxds.Change(slices.Collect(maps.Keys(streams)), func() map[*deltaxds.Stream]deltaxds.News {
		n.mu.Lock()
		defer n.mu.Unlock()
		news := n.cache.apply(parts)
		out := map[*deltaxds.Stream]deltaxds.News{}
		for stream, uid := range streams {
			if of, ok := news[uid]; ok {
				out[stream] = of
			}
		}
		return out
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = parts[0].GetNumber()
	signal(n.urgent)
	signal(n.moved)
}
