package nodexds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	clocktesting "k8s.io/utils/clock/testing"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

// chain is a mesh of layers, Pilot's session, the node with its dialogue, some pods with a proxy each, and what is on the wires.
type chain struct {
	random *rand.Rand
	clock  *clocktesting.FakeClock
	said   []string

	layers  map[string]*deltaxdstest.World
	secrets *deltaxdstest.World // the agent's own
	pods    map[string]*member  // by UID
	uids    int

	session         *Session                           // nil while Pilot is away
	known           map[string]bool                    // pods that Pilot has been told of
	admitted        map[string][]string                // those that it serves, and their layers
	statuses        map[string]map[string]*nodev1.Type // as Pilot has been told, by pod and type
	proxies         map[string]string                  // the IDs of proxies that Pilot has been told of, by pod
	connections     int
	toPilot, toNode []proto.Message

	node     *Node
	dialogue *dialogue
}

// member is a pod and its proxy.
type member struct {
	uid     string
	born    []string // what its proxy was started with
	layers  []string // by Pilot's knowledge, which it may come to late; none: it has not seen the pod
	deleted bool     // Pilot does not see it any more: it goes on with what it has
	socket  bool     // at the agent

	envoy             *deltaxdstest.Envoy
	proxy             *Proxy // nil while there is none
	stream            *deltaxds.Stream
	toAgent, fromNode []any
	hung              bool
}

// own serves secrets from the agent and all else from the node.
type own struct {
	*Proxy
	secrets *deltaxdstest.World
}

func (o own) Resource(url, name string) (*deltaxds.Resource, bool) {
	if url == deltaxds.SecretType {
		return o.secrets.Resource(url, name)
	}
	return o.Proxy.Resource(url, name)
}

func newChain(seed uint64) *chain {
	c := &chain{
		random: rand.New(rand.NewPCG(seed, 0)), clock: clocktesting.NewFakeClock(time.Unix(0, 0)), layers: map[string]*deltaxdstest.World{},
		secrets: deltaxdstest.NewWorld(), pods: map[string]*member{},
	}
	c.secrets.Changed = func(url, name string) {
		for _, p := range c.pods {
			if p.stream != nil {
				p.stream.Dirty(url, name)
			}
		}
	}
	for _, l := range []string{"mesh", "class/a", "class/b", "identity/a", "identity/b"} {
		w := deltaxdstest.NewWorld()
		w.Changed = func(url, name string) {
			if c.session != nil {
				c.session.Mark(l, url, name)
			}
		}
		c.layers[l] = w
	}
	c.node = New(c.clock, "")
	for range 3 {
		c.newPod()
	}
	return c
}

func (c *chain) note(format string, args ...any) {
	if *seed != 0 {
		c.said = append(c.said, fmt.Sprintf(format, args...))
	}
}

// newPod has the agent have another pod, which Pilot may not have seen yet.
func (c *chain) newPod() { c.newPodOf(c.kinds()) }

func (c *chain) newPodOf(born []string) *member {
	c.uids++
	p := &member{uid: fmt.Sprintf("uid-%d", c.uids), socket: true, envoy: deltaxdstest.NewEnvoy(), born: born}
	c.pods[p.uid] = p
	c.node.Add(p.uid, "a/"+p.uid, p.born[1])
	c.note("pod %s comes, of %v", p.uid, p.born)
	return p
}

// kinds are layers that a pod may have.
func (c *chain) kinds() []string {
	return []string{[]string{"class/a", "class/b"}[c.random.IntN(2)], []string{"identity/a", "identity/b"}[c.random.IntN(2)], "mesh"}
}

// see has Pilot see a pod, mostly as it was born, or its labels change.
func (c *chain) see(p *member) {
	if p.layers = p.born; c.random.IntN(3) == 0 {
		p.layers = c.kinds()
	}
	c.note("pod %s has %v", p.uid, p.layers)
	c.authorize(p.uid)
}

// authorize is what Pilot does when it is told of a pod or sees one.
func (c *chain) authorize(uid string) {
	if p := c.pods[uid]; c.session != nil && c.known[uid] && p != nil && p.layers != nil && !p.deleted {
		c.admitted[uid] = p.layers
		c.session.Speak(uid, p.layers, "")
	}
}

// refuse has Pilot find that another pod has the name of one that it serves.
func (c *chain) refuse(p *member) {
	if c.session != nil && c.admitted[p.uid] != nil {
		c.note("pod %s is refused", p.uid)
		delete(c.admitted, p.uid)
		p.layers = nil
		c.session.Speak(p.uid, nil, "another pod has its name")
	}
}

func (c *chain) removePod(p *member) {
	c.note("pod %s goes", p.uid)
	if p.proxy != nil {
		c.disconnectProxy(p, nil)
	}
	p.socket = false
	delete(c.pods, p.uid)
	c.node.Remove(p.uid)
}

func (c *chain) connectProxy(p *member) {
	c.note("the proxy of %s connects", p.uid)
	p.envoy.Reconnect()
	c.connections++
	p.proxy = c.node.Proxy(p.uid, fmt.Sprintf("sidecar~%s~%d", p.uid, c.connections), p.born[0])
	p.stream, p.toAgent, p.fromNode = deltaxds.NewStream(own{p.proxy, c.secrets}, c.clock), nil, nil
	p.proxy.Begin(p.stream)
}

func (c *chain) disconnectProxy(p *member, err error) {
	c.note("the stream of %s ends: %v", p.uid, err)
	p.proxy.End(err)
	p.proxy, p.stream = nil, nil
}

func (c *chain) connectPilot() {
	c.note("the agent connects")
	c.session, c.toPilot, c.toNode = NewSession(c), nil, nil
	c.known, c.admitted, c.statuses, c.proxies = map[string]bool{}, map[string][]string{}, map[string]map[string]*nodev1.Type{}, map[string]string{}
	var opening []*nodev1.Report
	c.dialogue, opening = c.node.open()
	for i, r := range opening { // gRPC keeps the order; that Pilot answers before it has heard all is tried by the moves
		c.session.Open(r)
		if r.GetMore() != (i < len(opening)-1) {
			panic("where the opening ends is not said")
		}
	}
	for _, p := range opening[0].GetPods() {
		c.known[p.GetUid()] = true
		c.authorize(p.GetUid())
	}
}

func (c *chain) disconnectPilot() {
	c.note("the stream to Pilot ends")
	c.session, c.dialogue = nil, nil
	c.node.leave()
}

// restartAgent has the agent lose all that it has.
func (c *chain) restartAgent() {
	c.note("the agent is restarted")
	c.disconnectPilot()
	c.node = New(c.clock, "")
	for _, p := range c.pods {
		p.proxy, p.stream = nil, nil
		c.node.Add(p.uid, "a/"+p.uid, p.born[1])
	}
}

// had says whether Pilot has a layer: as long as a pod has it that it serves.
func (c *chain) had(layer string) bool {
	for _, layers := range c.admitted {
		if slices.Contains(layers, layer) {
			return true
		}
	}
	return false
}

// Resources implements Layers.
func (c *chain) Resources(layer string, yield func(string, *deltaxds.Resource)) {
	if !c.had(layer) {
		return
	}
	for _, url := range deltaxdstest.Types {
		for _, r := range c.layers[layer].All(url) {
			yield(url, r)
		}
	}
}

// Resource implements Layers.
func (c *chain) Resource(layer, url, name string) *deltaxds.Resource {
	if !c.had(layer) {
		return nil
	}
	return c.layers[layer].All(url)[name]
}

// hear is what Pilot does with a report.
func (c *chain) hear(r *nodev1.Report) {
	c.session.Take(r)
	for _, p := range r.GetPods() {
		if p.GetGone() {
			delete(c.known, p.GetUid())
			delete(c.admitted, p.GetUid())
			delete(c.statuses, p.GetUid())
			c.session.Forget(p.GetUid())
			continue
		}
		c.known[p.GetUid()] = true
		c.authorize(p.GetUid())
	}
	for _, p := range r.GetProxies() {
		if c.proxies[p.GetUid()] != p.GetNodeId() {
			c.proxies[p.GetUid()], c.statuses[p.GetUid()] = p.GetNodeId(), map[string]*nodev1.Type{}
		}
		for _, t := range p.GetTypes() {
			c.statuses[p.GetUid()][t.GetType()] = t
		}
	}
}

// settled says whether Pilot believes that a pod's proxy has all of a type.
func (c *chain) settled(uid, url string) bool {
	st := c.statuses[uid][url]
	return c.session != nil && st != nil && !st.GetPending() && st.GetReason() == "" && !c.session.Behind(uid, url)
}

func (c *chain) members() []*member {
	var out []*member
	for _, uid := range slices.Sorted(maps.Keys(c.pods)) {
		out = append(out, c.pods[uid])
	}
	return out
}

// moves are what can happen on the wires and at their ends; some turn out to be none.
func (c *chain) moves() []func() bool {
	var out []func() bool
	move := func(f func()) { out = append(out, func() bool { f(); return true }) }
	for _, p := range c.members() {
		if p.proxy == nil {
			continue
		}
		if !p.hung {
			for _, url := range p.envoy.Ready() {
				move(func() { p.toAgent = append(p.toAgent, p.envoy.Request(url)) })
			}
			if len(p.fromNode) > 0 {
				move(func() { p.envoy.Take(pop[*discovery.DeltaDiscoveryResponse](c, p.uid, &p.fromNode)) })
			}
		}
		if len(p.toAgent) > 0 {
			move(func() { p.stream.Take(pop[*discovery.DeltaDiscoveryRequest](c, "the agent", &p.toAgent)) })
		}
		out = append(out, func() bool {
			resp := p.stream.Next()
			if resp != nil {
				p.fromNode = append(p.fromNode, resp.DeltaDiscoveryResponse)
			}
			return resp != nil
		})
	}
	if c.session == nil {
		return out
	}
	if len(c.toPilot) > 0 {
		move(func() { c.hear(take[*nodev1.Report](c, "Pilot", &c.toPilot)) })
	}
	if len(c.toNode) > 0 {
		move(func() {
			if err := c.dialogue.take(take[*nodev1.Update](c, "the agent", &c.toNode)); err != nil {
				panic(err)
			}
		})
	}
	say := func(r *nodev1.Report) bool {
		if r != nil {
			c.toPilot = append(c.toPilot, r)
		}
		return r != nil
	}
	return append(out,
		func() bool { return say(c.dialogue.news()) }, func() bool { return say(c.dialogue.progress()) },
		func() bool {
			u := c.session.Next()
			if u == nil {
				return false
			}
			for _, part := range c.split(u) {
				m, err := part.Message()
				if err != nil {
					panic(err)
				}
				c.toNode = append(c.toNode, m)
			}
			return true
		})
}

// split sends some updates in two messages.
func (c *chain) split(u *Outgoing) []*Outgoing {
	if n := len(u.Changes); n > 1 && c.random.IntN(2) == 0 {
		i := 1 + c.random.IntN(n-1)
		return []*Outgoing{
			{Number: u.Number, More: true, Words: u.Words, Changes: u.Changes[:i]}, {Number: u.Number, Changes: u.Changes[i:]}}
	}
	return u.Parts()
}

func pop[T any](c *chain, who string, queue *[]any) T {
	first := (*queue)[0].(T)
	*queue = (*queue)[1:]
	c.note("  %s hears %v", who, first)
	return first
}

func take[T proto.Message](c *chain, who string, queue *[]proto.Message) T {
	first := (*queue)[0].(T)
	*queue = (*queue)[1:]
	c.note("  %s hears %v", who, first)
	return first
}

// move makes one move, and returns false if none is possible.
func (c *chain) move() bool {
	moves := c.moves()
	c.random.Shuffle(len(moves), func(i, j int) { moves[i], moves[j] = moves[j], moves[i] })
	for _, m := range append(moves, moves...) { // twice, since a step that says nothing may be what another waits for
		if m() {
			return true
		}
	}
	return false
}
