package nodexds

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

var (
	seed   = flag.Uint64("seed", 0, "the one world to try, as a failure names it; 0 tries many")
	worlds = flag.Int("worlds", 3000, "how many worlds to try")
)

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
	for i, s := range deltaxdstest.Seeds(*seed, *worlds) {
		c := newChain(s)
		if wrong := c.live(); len(wrong) > 0 {
			t.Fatalf("world %d of seed %d (see it with -seed %[2]d):\n%s\n%s", i, s, strings.Join(c.said, "\n"), strings.Join(wrong, "\n"))
		}
	}
}
