package relay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

var (
	seed   = flag.Uint64("seed", 0, "the one world to try, as a failure names it; 0 tries many")
	worlds = flag.Int("worlds", 10000, "how many worlds to try")
)

// chain is a world, Pilot's stream, the relay with its stream to a proxy, the proxy, and what is on the two wires.
type chain struct {
	random *rand.Rand
	clock  *clocktesting.FakeClock
	world  *deltaxdstest.World
	relay  *Relay
	envoy  *deltaxdstest.Envoy

	pilot            *deltaxds.Stream // nil while Pilot is away
	upstream         *upstream
	toPilot, toRelay []any // requests, responses

	proxy             *deltaxds.Stream // nil while there is none
	fromProxy, toEnvy []any
	hung              bool // the proxy does nothing
	said              []string
}

// local serves secrets from the world, as the agent serves them itself, and all else from the cache.
type local struct {
	*Relay
	world *deltaxdstest.World
}

func (l local) Resource(url, name string) (*deltaxds.Resource, bool) {
	if url == deltaxds.SecretType {
		return l.world.Resource(url, name)
	}
	return l.cache.Resource(url, name)
}

func (l local) Wildcard(url string) ([]string, bool) { return l.cache.Wildcard(url) }

func (l local) Subscribed(url string, added, removed []string) {
	if url != deltaxds.SecretType {
		l.cache.Subscribed(url, added, removed)
	}
}

func newChain(seed uint64) *chain {
	clock := clocktesting.NewFakeClock(time.Unix(0, 0))
	c := &chain{
		random: rand.New(rand.NewPCG(seed, 0)), clock: clock, world: deltaxdstest.NewWorld(), envoy: deltaxdstest.NewEnvoy(),
		relay: &Relay{
			config: Config{Clock: clock}, cache: newCache(), log: quiet, streams: map[*deltaxds.Stream]bool{},
			stepped: make(chan struct{}, 1), anew: make(chan struct{}, 1),
		},
	}
	c.world.Changed = func(url, name string) {
		if url == deltaxds.SecretType {
			c.relay.dirty(url, []string{name})
		} else if c.pilot != nil {
			c.pilot.Dirty(url, name)
		}
	}
	c.connectEnvoy()
	return c
}

func (c *chain) note(format string, args ...any) {
	if *seed != 0 {
		c.said = append(c.said, fmt.Sprintf(format, args...))
	}
}

func (c *chain) connectEnvoy() {
	c.note("the proxy connects")
	c.envoy.Reconnect()
	c.proxy, c.fromProxy, c.toEnvy = deltaxds.NewStream(local{c.relay, c.world}, c.clock), nil, nil
	c.proxy.Doubt(deltaxds.EndpointType)
	c.relay.connect(c.proxy, nil)
}

func (c *chain) disconnectEnvoy(err error) {
	c.note("the proxy's stream ends: %v", err)
	c.relay.disconnect(c.proxy, err)
	c.proxy = nil
}

func (c *chain) connectPilot() {
	c.note("the relay connects")
	select {
	case <-c.relay.anew:
	default:
	}
	c.pilot, c.toPilot, c.toRelay = deltaxds.NewStream(c.world, c.clock), nil, nil
	c.upstream = newUpstream(c.relay)
	for _, req := range c.upstream.open() {
		c.toPilot = append(c.toPilot, req)
	}
}

func (c *chain) disconnectPilot(why any) {
	c.note("the stream to Pilot ends: %v", why)
	c.pilot, c.upstream = nil, nil
}

// watch does what Serve and Run do about who does not answer.
func (c *chain) watch() {
	if c.proxy != nil {
		if stalled := c.proxy.Stalled(); stalled != nil {
			c.disconnectEnvoy(stalled)
		}
	}
	if c.pilot != nil {
		if stalled := c.pilot.Stalled(); stalled != nil {
			c.disconnectPilot(stalled)
		}
	}
	if c.upstream != nil && len(c.relay.anew) > 0 {
		c.disconnectPilot("anew")
	}
}

// moves are what can happen on the wires and at their ends. What a stream has to say is only known by asking it: such a
// move may turn out to be none.
func (c *chain) moves() []func() bool {
	var out []func() bool
	move := func(f func()) { out = append(out, func() bool { f(); return true }) }
	if c.proxy != nil && !c.hung {
		for _, url := range c.envoy.Ready() {
			move(func() { c.fromProxy = append(c.fromProxy, c.envoy.Request(url)) })
		}
		if len(c.toEnvy) > 0 {
			move(func() { c.envoy.Take(pop[*discovery.DeltaDiscoveryResponse](c, "proxy", &c.toEnvy)) })
		}
	}
	if c.proxy != nil {
		if len(c.fromProxy) > 0 {
			move(func() { c.proxy.Take(pop[*discovery.DeltaDiscoveryRequest](c, "relay", &c.fromProxy)) })
		}
		out = append(out, func() bool { return push(&c.toEnvy, c.proxy.Next()) })
	}
	if c.pilot == nil {
		return out
	}
	if len(c.toPilot) > 0 {
		move(func() { c.pilot.Take(pop[*discovery.DeltaDiscoveryRequest](c, "Pilot", &c.toPilot)) })
	}
	if len(c.toRelay) > 0 {
		move(func() { c.upstream.take(pop[*discovery.DeltaDiscoveryResponse](c, "relay", &c.toRelay)) })
	}
	return append(out,
		func() bool { return push(&c.toRelay, c.pilot.Next()) },
		func() bool {
			requests, err := c.upstream.requests()
			if err != nil {
				c.disconnectPilot(err)
				c.connectPilot()
				return true
			}
			for _, req := range requests {
				c.toPilot = append(c.toPilot, req)
			}
			return len(requests) > 0
		})
}

func pop[T any](c *chain, who string, queue *[]any) T {
	first := (*queue)[0].(T)
	*queue = (*queue)[1:]
	c.note("  %s hears %v", who, first)
	return first
}

func push(queue *[]any, resp *deltaxds.Response) bool {
	if resp == nil {
		return false
	}
	*queue = append(*queue, resp.DeltaDiscoveryResponse)
	return true
}

// move makes one move, and returns false if none is possible.
func (c *chain) move() bool {
	moves := c.moves()
	c.random.Shuffle(len(moves), func(i, j int) { moves[i], moves[j] = moves[j], moves[i] })
	// Twice: a stream that looks at what has changed and finds that the proxy has it says nothing, but that may be the answer
	// that Pilot waits for.
	for _, m := range append(moves, moves...) {
		if m() {
			return true
		}
	}
	return false
}

// act does what happens in the world.
func (c *chain) act() {
	switch n := c.random.IntN(60); {
	case n < 2:
		if c.proxy != nil {
			c.disconnectEnvoy(nil)
		}
	case n == 2: // the proxy is started anew
		if c.proxy != nil {
			c.disconnectEnvoy(nil)
		}
		c.envoy = deltaxdstest.NewEnvoy()
	case n < 6:
		if c.proxy == nil {
			c.connectEnvoy()
		}
	case n < 8:
		if c.pilot != nil {
			c.disconnectPilot("by chance")
		}
	case n < 12:
		if c.pilot == nil {
			c.connectPilot()
		}
	case n < 14:
		c.clock.Step(time.Duration(c.random.IntN(10)) * time.Second)
		c.watch()
	case n == 14:
		c.hung = !c.hung
	case n < 17:
		c.envoy.Ask(fmt.Sprint(c.random.IntN(4)))
	case n == 17 && c.pilot != nil:
		c.relay.tidy()
	case n < 20:
		c.envoy.Unask(fmt.Sprint(c.random.IntN(4)))
	default:
		c.world.Random(c.random)
	}
}

// live is one chain from its beginning to where it has settled, and returns what is wrong then.
func (c *chain) live() []string {
	for range 10 + c.random.IntN(80) {
		c.act()
		for range c.random.IntN(12) {
			c.move()
		}
	}
	c.note("nothing happens any more")
	c.world.Complete(true)
	c.hung = false
	c.watch()
	if c.proxy == nil {
		c.connectEnvoy()
	}
	if c.pilot == nil {
		c.connectPilot()
	}
	// The clock stands: whoever answers in time is never waited for in vain.
	rest := func() bool {
		for range 20000 {
			if !c.move() {
				return true
			}
		}
		return false
	}
	if !rest() {
		return []string{"it does not come to rest"}
	}
	c.relay.tidy()
	if !rest() {
		return []string{"it does not come to rest when it is tidied"}
	}
	wrong := c.world.Compare(c.envoy)
	for who, s := range map[string]*deltaxds.Stream{"Pilot": c.pilot, "the relay": c.proxy} {
		for url, st := range s.Status() {
			if st.Pending {
				wrong = append(wrong, fmt.Sprintf("%s, %s: something is unsent or unanswered: %+v", who, url, st))
			}
			if refuses := c.world.Refuses(c.envoy, url); refuses != (st.Error != "") {
				wrong = append(wrong, fmt.Sprintf("%s, %s: the error is %q, and the proxy refuses something: %v", who, url, st.Error, refuses))
			}
		}
	}
	return wrong
}

// Whatever happens in whatever order, the proxy comes to have what Pilot has, and Pilot knows it.
func TestProxyAndPilotAgreeInEveryWorld(t *testing.T) {
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

func (c *chain) settle(t *testing.T) {
	t.Helper()
	for range 20000 {
		if !c.move() {
			return
		}
	}
	t.Fatal("it does not come to rest")
}

// synced is what `meshctl status` shows.
func (c *chain) synced() bool {
	for _, st := range c.pilot.Status() {
		if st.Pending || st.Error != "" {
			return false
		}
	}
	return true
}

// full returns a chain whose proxy has some of everything.
func full(t *testing.T, seed uint64) *chain {
	c := newChain(seed)
	for i := range 3 {
		name := fmt.Sprint(i)
		c.world.Set(deltaxds.EndpointType, name, deltaxdstest.Facts{})
		c.world.Set(deltaxds.ClusterType, name, deltaxdstest.Facts{Secret: "0"})
		c.world.Set(deltaxds.ListenerType, name, deltaxdstest.Facts{Routes: []string{name}, Filters: []string{"0"}})
	}
	c.world.Complete(true)
	c.connectPilot()
	c.settle(t)
	if wrong := c.world.Compare(c.envoy); len(wrong) > 0 || !c.synced() {
		t.Fatalf("to begin with: %v", wrong)
	}
	return c
}

// A proxy that hangs is never said to have what it has not, however often the streams begin anew; and when it comes back,
// it gets that from the cache.
func TestProxyThatHangsIsNeverSynced(t *testing.T) {
	for seed := range uint64(50) {
		c := full(t, seed)
		c.hung = true
		c.world.Set(deltaxds.ExtensionConfigType, "0", deltaxdstest.Facts{})
		c.world.Set(deltaxds.ClusterType, "1", deltaxdstest.Facts{})
		c.world.Delete(deltaxds.ListenerType, "2")
		c.settle(t)
		for range 3 {
			if c.synced() {
				t.Fatalf("seed %d: synced while it hangs", seed)
			}
			c.clock.Step(deltaxds.StallLimit)
			c.watch()
			if c.pilot != nil || c.proxy != nil {
				t.Fatalf("seed %d: a stream goes on", seed)
			}
			c.connectPilot()
			c.settle(t)
		}
		for _, name := range []string{"0", "1", "2"} {
			held, _ := c.relay.cache.Resource(deltaxds.ClusterType, name)
			if r, _ := c.world.Resource(deltaxds.ClusterType, name); held == nil || held.Version != r.Version {
				t.Fatalf("seed %d: the cache has lost cluster %s", seed, name)
			}
		}
		c.hung = false
		c.connectEnvoy()
		c.settle(t)
		if wrong := c.world.Compare(c.envoy); len(wrong) > 0 || !c.synced() {
			t.Fatalf("seed %d: when it has come back: %v", seed, wrong)
		}
	}
}

// What was taken for a proxy that was away, and it refuses when it comes, Pilot hears.
func TestPilotHearsWhatAProxyRefusesThatWasAway(t *testing.T) {
	for seed := range uint64(50) {
		c := full(t, seed)
		c.disconnectEnvoy(nil)
		c.world.Set(deltaxds.ListenerType, "1", deltaxdstest.Facts{Bad: true})
		c.settle(t)
		c.envoy = deltaxdstest.NewEnvoy()
		c.connectEnvoy()
		c.settle(t)
		if st := c.pilot.Status()[deltaxds.ListenerType]; st.Error == "" || st.Pending {
			t.Fatalf("seed %d: Pilot believes %+v", seed, st)
		}
	}
}

// What one proxy of the pod has asked for and the next does not need is not kept for ever.
func TestNamesThatNobodyNeedsAreDropped(t *testing.T) {
	c := full(t, 1)
	c.disconnectEnvoy(nil)
	for i := range 3 {
		c.world.Delete(deltaxds.ListenerType, fmt.Sprint(i))
	}
	c.settle(t)
	c.envoy = deltaxdstest.NewEnvoy()
	c.connectEnvoy()
	c.relay.tidy()
	if n := c.pilot.Status()[deltaxds.RouteType].Subscribed; n != 3 {
		t.Fatalf("%d routes are left while the proxy starts", n)
	}
	c.settle(t)
	c.relay.tidy()
	c.settle(t)
	if n := c.pilot.Status()[deltaxds.RouteType].Subscribed; n != 0 {
		t.Fatalf("%d routes are left", n)
	}
}
