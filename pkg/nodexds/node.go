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
	alone   bool            // there is no stream to Pilot
	module  string          // see New
	applied uint64          // the last update that all streams of proxies have been told of

	urgent chan struct{} // capacity one: pods have come or gone, or an update has been applied
	moved  chan struct{} // capacity one: a proxy has come to something

	unknownKeys map[string]bool // UIDs of pods; see UnknownKey
}

// pod is one that has a socket.
type pod struct {
	uid, name string
	account   string   // its identity, whose pods may have each other's layers
	refused   bool     // Pilot has said that it has nothing from here
	proxies   []*Proxy // connected ones; the last to come is the one that counts
	lost      *lost    // if the last one has stalled, until another comes
}

// lost is a proxy that has stalled. It is still there, with what it had.
type lost struct {
	proxy   *Proxy
	status  map[string]deltaxds.Status
	stalled *deltaxds.Stalled
}

// New returns a node without pods. Module is the version of the module of package closer that is in the directory of each pod that is added, empty if none is.
func New(cl clock.Clock, module string) *Node {
	return &Node{clock: cl, module: module, cache: newCache(), pods: map[string]*pod{}, unknownKeys: map[string]bool{}, alone: true, urgent: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
}

// Add adds a pod (name: namespace/name) of a service account, which has a socket from now on.
func (n *Node) Add(uid, name, account string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods[uid] == nil {
		n.pods[uid] = &pod{uid: uid, name: name, account: account}
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
	class  string // the layer that its pod's class has, as it says; empty if it does not
	since  time.Time
	stream *deltaxds.Stream // set by Begin
}

// Proxy returns the source of a proxy that has connected, calls itself id and says which layer is that of its pod's class. Begin comes next.
func (n *Node) Proxy(uid, id, class string) *Proxy {
	return &Proxy{node: n, uid: uid, id: id, class: class, since: n.clock.Now()}
}

// Begin has the proxy's stream be told of what changes, before it asks for anything.
func (p *Proxy) Begin(stream *deltaxds.Stream) {
	p.stream = stream
	n := p.node
	n.begin.Lock()
	defer n.begin.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if pod := n.pods[p.uid]; pod != nil {
		pod.proxies = append(pod.proxies, p)
		pod.lost = nil
		n.adopt(pod)
	}
	signal(n.moved)
}

// adopt has a pod that Pilot has never spoken of have what another pod of its class has, while Pilot is away, and reports whether it has. The
// class is what the proxy says, so the other has to be of the same service account, which kubelet said: that much it could read there, too.
// Pilot, when it is back, is told like of any other what the pod has, and says what it is to have.
//
// Only without a stream: Pilot would not know otherwise that the node needs the layers still. It is called with mu held.
func (n *Node) adopt(p *pod) bool {
	if !n.alone || p.refused || n.cache.words[p.uid] != nil || len(p.proxies) == 0 {
		return false
	}
	class := p.proxies[len(p.proxies)-1].class
	if class == "" {
		return false
	}
	for uid, other := range n.pods {
		if layers := n.cache.words[uid]; other.account == p.account && slices.Contains(layers, class) {
			n.cache.words[p.uid] = layers
			return true
		}
	}
	return false
}

// leave notes that the stream to Pilot has ended: proxies that have waited for its word may be helped.
func (n *Node) leave() {
	n.change(func() map[string]deltaxds.News {
		n.alone = true
		news := map[string]deltaxds.News{}
		for uid, pod := range n.pods {
			if n.adopt(pod) {
				news[uid] = deltaxds.News{Everything: true}
			}
		}
		return news
	})
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

// apply takes an update, in all its parts.
func (n *Node) apply(parts []*nodev1.Update) {
	n.change(func() map[string]deltaxds.News {
		for _, u := range parts {
			for _, w := range u.GetWords() {
				if pod := n.pods[w.GetUid()]; pod != nil {
					pod.refused = len(w.GetLayers()) == 0
				}
			}
		}
		return n.cache.apply(parts)
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = parts[0].GetNumber()
	signal(n.urgent)
	signal(n.moved)
}

// change runs what alters the cache, with mu held and between two steps of every proxy's stream. It returns what may differ for pods.
func (n *Node) change(alter func() map[string]deltaxds.News) {
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
		news := alter()
		out := map[*deltaxds.Stream]deltaxds.News{}
		for stream, uid := range streams {
			if of, ok := news[uid]; ok {
				out[stream] = of
			}
		}
		return out
	})
}

// UnknownKey notes that a pod's proxy has refused a token whose key it does not have: Pilot may find it out by asking for the keys again. It may be called as often as
// requests come.
func (n *Node) UnknownKey(uid string) {
	n.mu.Lock()
	here := n.pods[uid] != nil
	if here {
		n.unknownKeys[uid] = true
	}
	n.mu.Unlock()
	if here {
		signal(n.moved)
	}
}
