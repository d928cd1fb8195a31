package deltaxds_test

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

// play is a world, a stream, a proxy, and what is on the wire between them.
type play struct {
	random *rand.Rand
	clock  *clocktesting.FakeClock
	world  *deltaxdstest.World
	envoy  *deltaxdstest.Envoy
	stream *deltaxds.Stream
	up     []*discovery.DeltaDiscoveryRequest
	down   []*discovery.DeltaDiscoveryResponse
	said   []string

	// In a healthy world all that a proxy needs comes to be in the end. Then the clock stands, since nothing may be waited for in
	// vain. In another one a secret may never come, and what replaces the cluster that needs it comes after a time; but a
	// proxy that reconnects then does not ask for clusters any more.
	healthy bool
}

func newPlay(seed uint64) *play {
	p := &play{
		random: rand.New(rand.NewPCG(seed, 0)), clock: clocktesting.NewFakeClock(time.Unix(0, 0)),
		world: deltaxdstest.NewWorld(), envoy: deltaxdstest.NewEnvoy(),
	}
	p.healthy = p.random.IntN(4) > 0
	p.world.Changed = func(url, name string) { p.stream.Dirty(url, name) }
	p.connect()
	return p
}

func (p *play) connect() {
	p.stream, p.up, p.down = deltaxds.NewStream(p.world, p.clock), nil, nil
	p.envoy.Reconnect()
	p.note("reconnect")
}

func (p *play) note(format string, args ...any) {
	if *seed != 0 {
		p.said = append(p.said, fmt.Sprintf(format, args...))
	}
}

// move makes one of the moves that are possible on the wire and at its ends, and returns false if there is none.
func (p *play) move() bool {
	var moves []func()
	for _, url := range p.envoy.Ready() {
		moves = append(moves, func() {
			req := p.envoy.Request(url)
			p.note("  proxy says %v", req)
			p.up = append(p.up, req)
		})
	}
	if len(p.up) > 0 {
		moves = append(moves, func() {
			p.note("  server hears %v", p.up[0])
			p.stream.Take(p.up[0])
			p.up = p.up[1:]
		})
	}
	if len(p.down) > 0 {
		moves = append(moves, func() {
			p.note("  proxy hears %v", p.down[0])
			p.envoy.Take(p.down[0])
			p.down = p.down[1:]
		})
	}
	// The server's turn comes as any other's; what there is to say is only known by taking it.
	if i := p.random.IntN(len(moves) + 1); i < len(moves) {
		moves[i]()
		return true
	}
	if resp := p.stream.Next(); resp != nil {
		p.note("  server says %v", resp.DeltaDiscoveryResponse)
		p.down = append(p.down, resp.DeltaDiscoveryResponse)
		return true
	}
	if len(moves) == 0 {
		return false
	}
	moves[p.random.IntN(len(moves))]()
	return true
}

// act does what happens in the world.
func (p *play) act() {
	switch n := p.random.IntN(40); {
	case n == 0 && p.healthy:
		p.connect()
	case n < 3:
		p.clock.Step(time.Duration(p.random.IntN(10)) * time.Second)
		if p.healthy && p.stream.Stalled() != nil {
			p.connect()
		}
	case n < 5:
		p.envoy.Ask(fmt.Sprint(p.random.IntN(4)))
	case n < 7:
		p.envoy.Unask(fmt.Sprint(p.random.IntN(4)))
	default:
		p.note("world changes")
		p.world.Random(p.random)
	}
}

// live is one world from its beginning to where it has settled, and returns what is wrong then.
func (p *play) live() []string {
	for range 10 + p.random.IntN(60) {
		p.act()
		for range p.random.IntN(8) {
			p.move()
		}
	}
	p.note("nothing happens any more")
	p.world.Complete(p.healthy)
	for waited, step := 0, 0; ; step++ {
		if p.move() {
			if step > 20000 {
				return []string{"it does not come to rest"}
			}
			continue
		}
		if p.healthy || waited == 3 {
			break
		}
		waited++
		p.clock.Step(deltaxds.Patience)
	}
	wrong := p.world.Compare(p.envoy)
	for url, st := range p.stream.Status() {
		if st.Pending {
			wrong = append(wrong, fmt.Sprintf("%s: something is unsent or unanswered: %+v", url, st))
		}
		if refuses := p.world.Refuses(p.envoy, url); refuses != (st.Error != "") {
			wrong = append(wrong, fmt.Sprintf("%s: the error is %q, and the proxy refuses something: %v", url, st.Error, refuses))
		}
	}
	return wrong
}

// Whatever happens in whatever order, client and server come to agree, and nobody waits.
func TestProxyAndServerAgreeInEveryWorld(t *testing.T) {
	for i, s := range deltaxdstest.Seeds(*seed, *worlds) {
		p := newPlay(s)
		if wrong := p.live(); len(wrong) > 0 {
			t.Fatalf("world %d of seed %d (see it with -seed %[2]d):\n%s\n%s", i, s, strings.Join(p.said, "\n"), strings.Join(wrong, "\n"))
		}
	}
}

// Where Services come and go whole and nothing is refused, no request ever finds a listener whose cluster is not there: neither a new
// listener is ahead of its cluster, nor does a cluster go before the listener that refers to it.
func TestNoListenerIsAheadOfItsClusters(t *testing.T) {
	for i, s := range deltaxdstest.Seeds(*seed, *worlds) {
		p := newPlay(s)
		step := func() bool {
			moved := p.move()
			if ahead := p.envoy.Ahead(); len(ahead) > 0 {
				t.Fatalf("world %d of seed %d (see it with -seed %[2]d):\n%s\nlisteners %v refer to clusters that are not there", i, s, strings.Join(p.said, "\n"), ahead)
			}
			return moved
		}
		for range 10 + p.random.IntN(40) {
			if p.random.IntN(30) == 0 {
				p.connect()
			} else {
				p.note("world changes")
				p.world.RandomService(p.random)
			}
			for range p.random.IntN(12) {
				step()
			}
		}
		p.note("nothing happens any more")
		for moves := 0; step(); moves++ {
			if moves > 20000 {
				t.Fatalf("world %d of seed %d does not come to rest", i, s)
			}
		}
		if wrong := p.world.Compare(p.envoy); len(wrong) > 0 {
			t.Fatalf("world %d of seed %d (see it with -seed %[2]d):\n%s\n%s", i, s, strings.Join(p.said, "\n"), strings.Join(wrong, "\n"))
		}
	}
}
