package featuretest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

var (
	seed  = flag.Uint64("seed", 0, "of the changes, as a failure names it; 0 chooses one")
	steps = flag.Int("changes", 500, "how many times the world changes")
)

// Whatever changes, in whatever order, proxies that stay connected have received what they would receive of a Pilot that has
// just started. A change of which Pilot forgets to tell somebody, or to make something anew, is found here.
//
// Time stands in the bubble of synctest, and nothing has to be waited for: whoever has more to do does it before Wait returns.
func TestIncrementalEqualsFresh(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	defer t.Logf("seed %d", s)
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{t: t, world: newWorld(s), wire: newWire(), proxies: map[string]*proxy{}}
		events, _ := m.world.news(t)
		m.pilot = newPilot(t, events)
		for i := range *steps + 1 {
			said := "the beginning"
			if i > 0 {
				said = m.change()
			}
			if wrong := append(m.settle(), m.compare()...); len(wrong) > 0 {
				t.Fatalf("%s\nafter change %d of seed %d (-seed %[3]d):\n%s", strings.Join(wrong, "\n"), i, s, said)
			}
		}
		for _, p := range m.proxies {
			p.disconnect()
		}
		m.pilot.stop()
	})
}

// mesh is a world, the Pilot that has seen it change, and the proxies that have stayed connected.
type mesh struct {
	t       *testing.T
	world   *world
	wire    *wire
	pilot   *pilot
	proxies map[string]*proxy // by pod
}

// change has something happen: mostly one object changes, sometimes several at once; or a proxy connects anew.
func (m *mesh) change() string {
	r := m.world.random
	if r.IntN(15) == 0 {
		p := m.proxies[one(m.world, slices.Sorted(maps.Keys(m.proxies)))]
		p.disconnect()
		if r.IntN(2) == 0 {
			delete(m.proxies, p.pod) // and what connects is a new Envoy
		}
		return "a proxy of " + p.pod + " connects anew"
	}
	also := ""
	if r.IntN(15) == 0 { // an agent is away while things change
		name := one(m.world, slices.Sorted(maps.Keys(m.pilot.nodes)))
		if r.IntN(2) == 0 {
			m.pilot.nodes[name].cut()
			also = "\nthe agent of " + name + " connects anew"
		} else {
			m.restart(name)
			also = "\nthe agent of " + name + " begins anew"
		}
	}
	for range []int{1, 1, 1, 2, 3}[r.IntN(5)] {
		m.world.change()
	}
	events, said := m.world.news(m.t)
	m.pilot.apply(m.t, events)
	return said + also
}

// restart has the agent of a node lose all that it has. Its proxies keep what they have.
func (m *mesh) restart(name string) {
	m.pilot.nodes[name].stop()
	delete(m.pilot.nodes, name)
	for _, p := range m.proxies {
		if pod := m.pilot.pod(p.pod); pod != nil && pod.Node == name {
			p.disconnect()
		}
	}
}

// settle waits until Pilot, agents and proxies have nothing more to say. The proxy of each pod is connected then; that of one that is gone
// keeps its stream until another pod has its name.
func (m *mesh) settle() (wrong []string) {
	m.wait()
	for _, id := range slices.Sorted(maps.Keys(m.world.pods)) {
		pod, p := m.pilot.pod(id), m.proxies[id]
		if pod == nil {
			continue
		}
		if p != nil && p.uid != pod.UID {
			p.disconnect()
			m.pilot.node(m.t, pod.Node).Remove(p.uid)
			p = nil
		}
		if p != nil {
			connected, err := p.connected()
			if connected {
				continue
			}
			if !p.left {
				wrong = append(wrong, fmt.Sprintf("%s: the agent has ended the stream: %v", id, err))
			}
		} else {
			p = newProxy(m.wire, pod)
			m.proxies[id] = p
		}
		p.connect(m.t, m.pilot)
	}
	m.wait()
	return wrong
}

// wait lets pass the time in which agents gather what they report, and that in which they connect again.
func (m *mesh) wait() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

// compare returns how what the proxies have differs from what they would have if all began now.
func (m *mesh) compare() (wrong []string) {
	fresh := newPilot(m.t, m.world.all())
	defer fresh.stop()
	twins := map[string]*proxy{}
	for id := range m.proxies {
		if pod := fresh.pod(id); pod != nil {
			twins[id] = newProxy(m.wire, pod)
			twins[id].connect(m.t, fresh)
		}
	}
	m.wait()
	for _, id := range slices.Sorted(maps.Keys(twins)) {
		got, warming := m.proxies[id].holds()
		want, never := twins[id].holds()
		if len(warming)+len(never) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s: %v wait for something, and for a fresh Pilot %v do", id, warming, never))
		}
		wrong = append(wrong, m.differences(id, got, want)...)
		wrong = append(wrong, fresh.untold(id, want)...)
		if ok, err := twins[id].connected(); !ok {
			wrong = append(wrong, fmt.Sprintf("%s: a fresh Pilot ends the stream: %v", id, err))
		}
		twins[id].disconnect()
	}
	for _, s := range append(m.pilot.store.Proxies(), fresh.store.Proxies()...) {
		if !s.Synced {
			wrong = append(wrong, fmt.Sprintf("%s is waited for: %+v", s.Proxy, s.Types))
		}
	}
	return append(wrong, m.wire.ambiguous...)
}

func (m *mesh) differences(id string, got, want holdings) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch has, ok := got[name]; {
		case !ok:
			out = append(out, fmt.Sprintf("%s: %s is missing", id, name))
		case has != want[name]:
			d := cmp.Diff(text(m.wire.body(name, has)), text(m.wire.body(name, want[name])))
			out = append(out, fmt.Sprintf("%s: %s is not as a fresh Pilot has it (-has +fresh):\n%.3000s", id, name, d))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			out = append(out, fmt.Sprintf("%s: %s is still there", id, name))
		}
	}
	return out
}

func text(body *anypb.Any) string {
	msg, err := body.UnmarshalNew()
	if err != nil {
		return err.Error()
	}
	return protojson.Format(msg)
}
