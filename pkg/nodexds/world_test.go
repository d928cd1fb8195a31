package nodexds

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	clocktesting "k8s.io/utils/clock/testing"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

var (
	seed   = flag.Uint64("seed", 0, "the one world to try, as a failure names it; 0 tries many")
	worlds = flag.Int("worlds", 3000, "how many worlds to try")
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
	c.node = New(c.clock)
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
	c.node = New(c.clock)
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

// act does what happens in the mesh.
func (c *chain) act() {
	pods := c.members()
	p := pods[c.random.IntN(len(pods))]
	switch n := c.random.IntN(70); {
	case n < 3:
		if p.proxy != nil {
			c.disconnectProxy(p, nil)
		}
	case n == 3: // the proxy is started anew
		if p.proxy != nil {
			c.disconnectProxy(p, nil)
		}
		p.envoy = deltaxdstest.NewEnvoy()
	case n < 10:
		if p.proxy == nil {
			c.connectProxy(p)
		}
	case n < 12:
		if c.session != nil {
			c.disconnectPilot()
		}
	case n < 17:
		if c.session == nil {
			c.connectPilot()
		}
	case n == 17:
		c.restartAgent()
	case n < 20:
		c.clock.Step(time.Duration(c.random.IntN(10)) * time.Second)
		c.watch()
	case n == 20:
		p.hung = !p.hung
	case n == 21:
		if len(pods) > 1 {
			c.removePod(p)
		}
	case n == 22:
		c.newPod()
	case n < 26 && !p.deleted:
		c.see(p)
	case n < 27:
		if c.random.IntN(2) == 0 {
			c.refuse(p)
		} else {
			c.note("pod %s is deleted", p.uid)
			p.deleted = true
		}
	case n < 29:
		p.envoy.Ask(fmt.Sprint(c.random.IntN(4)))
	case n < 31:
		p.envoy.Unask(fmt.Sprint(c.random.IntN(4)))
	case n < 34:
		c.secrets.Set(deltaxds.SecretType, fmt.Sprint(c.random.IntN(2)), deltaxdstest.Facts{})
	default:
		names := slices.Sorted(maps.Keys(c.layers))
		l := names[c.random.IntN(len(names))]
		c.note("layer %s changes", l)
		c.layers[l].Random(c.random)
	}
}

// watch does what Serve does about a proxy that does not answer.
func (c *chain) watch() {
	for _, p := range c.members() {
		if p.proxy != nil {
			if stalled := p.stream.Stalled(); stalled != nil {
				c.disconnectProxy(p, stalled)
			}
		}
	}
}

// world is what a pod's proxy ought to have.
func (c *chain) world(p *member) *deltaxdstest.World {
	stack := []*deltaxdstest.World{c.secrets}
	for _, l := range p.layers {
		stack = append(stack, c.layers[l])
	}
	return deltaxdstest.Stack(stack...)
}

// guesses returns what Pilot believes of proxies that is not so.
func (c *chain) guesses() []string {
	var wrong []string
	for _, p := range c.members() {
		if p.proxy == nil || c.admitted[p.uid] == nil {
			continue
		}
		for _, url := range []string{deltaxds.ClusterType, deltaxds.ListenerType} {
			if !c.settled(p.uid, url) || c.proxies[p.uid] != p.proxy.id {
				continue
			}
			want, has := map[string]string{}, p.envoy.Has(url)
			for _, l := range slices.Backward(p.layers) {
				for name, r := range c.layers[l].All(url) {
					want[name] = r.Version
				}
			}
			if !maps.Equal(want, has) {
				wrong = append(wrong, fmt.Sprintf("Pilot takes the proxy of %s to have of %s %v, and it has %v", p.uid, url, want, has))
			}
		}
	}
	return wrong
}

// rest lets happen what is under way, and returns what is wrong.
func (c *chain) rest() []string {
	for range 50000 {
		if !c.move() {
			return nil
		}
		if wrong := c.guesses(); wrong != nil {
			return wrong
		}
	}
	return []string{"it does not come to rest"}
}

// live is one chain from its beginning to where it has settled, and returns what is wrong then.
func (c *chain) live() []string {
	for range 10 + c.random.IntN(80) {
		c.act()
		for range c.random.IntN(15) {
			c.move()
			if wrong := c.guesses(); wrong != nil {
				return wrong
			}
		}
	}
	c.note("nothing happens any more")
	c.newPod()
	for _, p := range c.members() {
		if p.deleted {
			c.removePod(p)
			continue
		}
		if p.layers == nil {
			c.see(p)
		}
		p.hung = false
	}
	for _, name := range []string{"0", "1"} {
		c.secrets.Set(deltaxds.SecretType, name, deltaxdstest.Facts{})
	}
	for range 2 { // since what is made for one pod is another's, too
		for _, p := range c.members() {
			c.world(p).Complete(true)
		}
	}
	c.watch()
	for _, p := range c.members() {
		if p.proxy == nil {
			c.connectProxy(p)
		}
	}
	if c.session == nil {
		c.connectPilot()
	}
	if wrong := c.rest(); wrong != nil {
		return wrong
	}
	return c.compare()
}

func (c *chain) compare() (wrong []string) {
	used := map[string]bool{}
	for _, p := range c.members() {
		w := c.world(p)
		for _, text := range w.Compare(p.envoy) {
			wrong = append(wrong, p.uid+": "+text)
		}
		for url, st := range p.stream.Status() {
			refuses := w.Refuses(p.envoy, url)
			if st.Pending || refuses != (st.Error != "") {
				wrong = append(wrong, fmt.Sprintf("%s, the agent, %s: it refuses something: %v, and the state is %+v", p.uid, url, refuses, st))
			}
			if url != deltaxds.SecretType && c.settled(p.uid, url) == refuses {
				wrong = append(wrong, fmt.Sprintf("%s, Pilot, %s: it refuses something: %v, and the state is %v, behind: %v", p.uid, url, refuses,
					c.statuses[p.uid][url], c.session.Behind(p.uid, url)))
			}
		}
		for _, l := range p.layers {
			used[l] = true
		}
	}
	for name, l := range c.node.cache.layers {
		if !used[name] {
			wrong = append(wrong, fmt.Sprintf("the agent keeps layer %s", name))
		}
		for url, of := range l {
			if len(of) != len(c.layers[name].All(url)) {
				wrong = append(wrong, fmt.Sprintf("of layer %s the agent has %d of %s, and there are %d", name, len(of), url, len(c.layers[name].All(url))))
			}
		}
	}
	for name := range c.session.held {
		if !used[name] {
			wrong = append(wrong, fmt.Sprintf("Pilot keeps what it has said of layer %s", name))
		}
	}
	return wrong
}

// Whatever happens in whatever order, each proxy comes to have what its layers have, Pilot knows it, and never believes it too early.
func TestProxiesNodeAndPilotAgreeInEveryWorld(t *testing.T) {
	first, n := *seed, 1
	if first == 0 {
		first, n = rand.Uint64(), *worlds
	}
	for i := range n {
		s := first + uint64(i)
		c := newChain(s)
		if wrong := c.live(); len(wrong) > 0 {
			t.Fatalf("world %d of seed %d (see it with -seed %[2]d):\n%s\n%s", i, s, strings.Join(c.said, "\n"), strings.Join(wrong, "\n"))
		}
	}
}

// full returns a chain where Pilot has seen all pods and each has a proxy with some of everything.
func full(t *testing.T, seed uint64) *chain {
	t.Helper()
	c := newChain(seed)
	c.secrets.Set(deltaxds.SecretType, "0", deltaxdstest.Facts{})
	for i := range 3 {
		name := fmt.Sprint(i)
		c.layers["mesh"].Set(deltaxds.EndpointType, name, deltaxdstest.Facts{})
		c.layers["mesh"].Set(deltaxds.ClusterType, name, deltaxdstest.Facts{Secret: "0"})
		c.layers["class/a"].Set(deltaxds.ExtensionConfigType, name, deltaxdstest.Facts{})
		c.layers["class/a"].Set(deltaxds.ListenerType, name, deltaxdstest.Facts{Filters: []string{name}})
	}
	c.connectPilot()
	for _, p := range c.members() {
		p.layers = []string{"class/a", "mesh"}
		c.authorize(p.uid)
		c.connectProxy(p)
	}
	c.settle(t)
	if wrong := c.compare(); len(wrong) > 0 {
		t.Fatalf("to begin with: %v", wrong)
	}
	return c
}

func (c *chain) settle(t *testing.T) {
	t.Helper()
	if wrong := c.rest(); wrong != nil {
		t.Fatal(wrong)
	}
}

// A proxy that hangs is never said to have what it has not, however often streams begin anew; those beside it go on. When it comes back, it
// gets what it lacks from the node.
func TestProxyThatHangsIsNeverSettledAndHoldsUpNobody(t *testing.T) {
	for seed := range uint64(50) {
		c := full(t, seed)
		hung := c.members()[1]
		hung.hung = true
		changed := []string{deltaxds.ExtensionConfigType, deltaxds.ClusterType, deltaxds.ListenerType}
		c.layers["class/a"].Set(deltaxds.ExtensionConfigType, "0", deltaxdstest.Facts{})
		c.layers["mesh"].Set(deltaxds.ClusterType, "1", deltaxdstest.Facts{})
		c.layers["class/a"].Delete(deltaxds.ListenerType, "2")
		for round := range 3 {
			c.settle(t)
			for _, p := range c.members() {
				for _, url := range changed {
					if c.settled(p.uid, url) == (p == hung) {
						t.Fatalf("seed %d, round %d: %s is settled with %s: %v", seed, round, p.uid, url, p != hung)
					}
				}
				if wrong := c.world(p).Compare(p.envoy); p != hung && len(wrong) > 0 {
					t.Fatalf("seed %d: beside one that hangs, %s: %v", seed, p.uid, wrong)
				}
			}
			c.clock.Step(deltaxds.StallLimit)
			c.watch()
			if hung.proxy != nil {
				t.Fatalf("seed %d: the stream of the proxy that hangs goes on", seed)
			}
			if round == 1 {
				c.disconnectPilot()
				c.connectPilot()
			}
		}
		c.settle(t)
		if c.settled(hung.uid, deltaxds.ClusterType) {
			t.Fatalf("seed %d: a proxy that has stalled is settled", seed)
		}
		hung.hung = false
		c.connectProxy(hung)
		c.settle(t)
		if wrong := c.compare(); len(wrong) > 0 {
			t.Fatalf("seed %d: when it has come back: %v", seed, wrong)
		}
	}
}

// A proxy that starts while Pilot is away has what the node holds, also in a pod that had none before; and in one that Pilot has never spoken
// of, if another pod is of its class and its service account. When Pilot is back, it is told, and what it says holds.
func TestProxiesStartWhilePilotIsAway(t *testing.T) {
	c := full(t, 1)
	known := c.members()[0]
	fresh, early, refused := c.newPodOf(known.born), c.newPodOf([]string{"class/a", known.born[1]}), c.newPodOf([]string{"class/a", known.born[1]})
	fresh.layers, refused.layers = known.layers, known.layers
	c.connectProxy(early)
	c.settle(t)
	c.refuse(refused)
	c.settle(t)
	waits := func(p *member, why string) {
		t.Helper()
		if st := p.stream.Status()[deltaxds.ClusterType]; st.Sent > 0 || !st.Pending {
			t.Errorf("%s: its proxy is told something: %+v", why, st)
		}
	}
	waits(early, "a pod that Pilot has yet to speak of, which it will")
	c.disconnectPilot()
	c.disconnectProxy(known, nil)
	known.envoy = deltaxdstest.NewEnvoy()
	alike, elsewhere, other := c.newPodOf([]string{"class/a", known.born[1]}), c.newPodOf([]string{"class/a", "identity/another"}), c.newPodOf([]string{"class/c", known.born[1]})
	for _, p := range []*member{known, fresh, refused, alike, elsewhere, other} {
		c.connectProxy(p)
	}
	c.settle(t)
	early.layers, alike.layers = known.layers, known.layers // as Pilot would have it
	for _, p := range []*member{known, fresh, early, alike} {
		if wrong := c.world(p).Compare(p.envoy); len(wrong) > 0 {
			t.Errorf("%s: %v", p.uid, wrong)
		}
	}
	waits(elsewhere, "a pod of another service account")
	waits(other, "a pod of another class")
	waits(refused, "a pod that Pilot has nothing for")
	for range 10 {
		c.clock.Step(deltaxds.StallLimit)
		if s := other.stream.Stalled(); s != nil {
			t.Fatalf("a proxy that waits for Pilot has stalled: %v", s)
		}
	}
	alike.layers = []string{"class/b", "mesh"} // somebody has given it another label
	for _, p := range []*member{elsewhere, other, refused} {
		p.layers = []string{"class/b", "mesh"}
	}
	c.connectPilot()
	c.settle(t)
	if wrong := c.compare(); len(wrong) > 0 {
		t.Errorf("when Pilot is back: %v", wrong)
	}
}

// An agent that comes back is sent what differs from what it has, and nothing else; words that hold are not said again.
func TestReturningAgentIsSentWhatDiffers(t *testing.T) {
	c := full(t, 1)
	c.disconnectPilot()
	c.layers["mesh"].Set(deltaxds.ClusterType, "1", deltaxdstest.Facts{})
	c.layers["class/a"].Delete(deltaxds.ListenerType, "2")
	moved := c.members()[2]
	moved.layers = []string{"class/b", "mesh"}
	c.connectPilot()
	u := c.session.Next()
	var said []string
	for _, w := range u.Words {
		said = append(said, fmt.Sprint(w.GetUid(), w.GetLayers()))
	}
	for _, change := range u.Changes {
		for _, r := range change.Resources {
			said = append(said, change.Layer+"/"+r.Name)
		}
		for _, name := range change.Removed {
			said = append(said, "-"+change.Layer+"/"+name)
		}
	}
	want := []string{"uid-3[class/b mesh]", "-class/a/2", "mesh/1"}
	if !slices.Equal(said, want) {
		t.Fatalf("said %v, want %v", said, want)
	}
}

// A layer that no pod has any more is forgotten on both sides; one that a pod comes to have again is sent anew.
func TestLayerThatNobodyHasIsForgotten(t *testing.T) {
	c := full(t, 1)
	held := func() (node, pilot bool) {
		return c.node.cache.layers["class/a"] != nil, c.session.held["class/a"] != nil
	}
	for i, p := range c.members() {
		if node, pilot := held(); !node || !pilot {
			t.Fatalf("with %d pods that have it, the layer is held: %v, %v", 3-i, node, pilot)
		}
		c.removePod(p)
		c.settle(t)
	}
	if node, pilot := held(); node || pilot || len(c.node.cache.words)+len(c.session.said) > 0 {
		t.Fatalf("without pods the layer is held: %v, %v", node, pilot)
	}
	c.newPod()
	p := c.members()[0]
	p.layers = []string{"class/a", "mesh"}
	c.authorize(p.uid)
	c.connectProxy(p)
	c.settle(t)
	if wrong := c.compare(); len(wrong) > 0 {
		t.Fatal(wrong)
	}
}

// A proxy of an agent that was restarted keeps what it has until Pilot speaks, and loses what has gone meanwhile then.
func TestRestartedAgentTakesNothingAway(t *testing.T) {
	c := full(t, 1)
	c.restartAgent()
	for _, p := range c.members() {
		c.connectProxy(p)
	}
	c.settle(t)
	for _, p := range c.members() {
		if wrong := c.world(p).Compare(p.envoy); len(wrong) > 0 {
			t.Errorf("while Pilot is away, %s: %v", p.uid, wrong)
		}
	}
	c.layers["mesh"].Delete(deltaxds.ClusterType, "1")
	c.connectPilot()
	c.settle(t)
	if wrong := c.compare(); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// What changes while an update is on its way comes in one update after it, however often it changes. The first is sent also where nothing differs,
// so that the agent knows that it has been heard.
func TestOneUpdateIsOnItsWay(t *testing.T) {
	c := newChain(1)
	c.connectPilot()
	if u := c.session.Next(); u == nil || len(u.Words)+len(u.Changes) > 0 {
		t.Fatalf("the first update is %+v", u)
	}
	c.session.Take(&nodev1.Report{Received: 1})
	if u := c.session.Next(); u != nil {
		t.Fatalf("without news it goes on with %+v", u)
	}
	c.known["uid-1"] = true
	c.pods["uid-1"].layers = []string{"mesh"}
	c.authorize("uid-1")
	if u := c.session.Next(); u == nil || u.Number != 2 {
		t.Fatalf("a pod comes, and the update is %+v", u)
	}
	for range 10 {
		for _, name := range []string{"a", "b"} {
			c.layers["mesh"].Set(deltaxds.ClusterType, name, deltaxdstest.Facts{})
			if u := c.session.Next(); u != nil {
				t.Fatalf("while an update is on its way, there is %+v", u)
			}
		}
	}
	c.session.Take(&nodev1.Report{Received: 7}) // which there is not: it is taken for the last
	u := c.session.Next()
	if u == nil || u.Number != 3 || len(u.Changes) != 1 || len(u.Changes[0].Resources) != 2 {
		t.Fatalf("the next update is %+v", u)
	}
}
