package nodexds

import (
	"fmt"
	"slices"
	"testing"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

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

// shelf is one layer of Pilot's, by name; of a layer that is not there, Pilot has nothing.
type shelf map[string][]*deltaxds.Resource

func (s shelf) Resources(layer string, yield func(string, *deltaxds.Resource)) {
	for _, r := range s[layer] {
		yield(deltaxds.ClusterType, r)
	}
}

func (s shelf) Resource(layer, _, name string) *deltaxds.Resource {
	for _, r := range s[layer] {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Of two pods of a layer, one of an earlier stream that Pilot has not spoken of yet, the other goes. Pilot has the layer no more then, and the first keeps what it has: the agent is told nothing.
func TestAPodThatPilotHasYetToSpeakOfKeepsItsLayer(t *testing.T) {
	here := shelf{"l": {resource(t, "a", 1), resource(t, "b", 1)}}
	s := NewSession(here)
	versions := map[string]string{}
	for _, r := range here["l"] {
		versions[r.Name] = r.Version
	}
	s.Open(&nodev1.Report{Pods: []*nodev1.Pod{{Uid: "spoken", Layers: []string{"l"}}, {Uid: "unspoken", Layers: []string{"l"}}},
		Held: []*nodev1.Held{{Layer: "l", Type: deltaxds.ClusterType, Versions: versions}}})
	next := func() *Outgoing {
		t.Helper()
		u := s.Next()
		if u != nil {
			s.Take(&nodev1.Report{Received: u.Number, AsOf: u.Number})
			if len(u.Changes) > 0 {
				t.Fatalf("the agent is told %+v", u.Changes)
			}
		}
		return u
	}
	s.Speak("spoken", []string{"l"}, "")
	next()
	if !s.Mark("l", deltaxds.ClusterType, "a") {
		t.Fatal("the layer of a pod that Pilot has spoken of is not followed")
	}
	next()
	s.Forget("spoken")
	next()
	delete(here, "l")
	if s.Mark("l", deltaxds.ClusterType, "a") {
		t.Error("a layer is followed that is a pod's alone of which Pilot has not spoken")
	}
	next()
	here["l"] = []*deltaxds.Resource{resource(t, "a", 1)}
	s.Speak("unspoken", []string{"l"}, "")
	if u := s.Next(); u == nil || len(u.Changes) != 1 || !slices.Equal(u.Changes[0].Removed, []string{"b"}) || len(u.Changes[0].Resources) > 0 {
		t.Errorf("when Pilot speaks of it, the agent is told %+v, want that b is gone", u)
	}
}
