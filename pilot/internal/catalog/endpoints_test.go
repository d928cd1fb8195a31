package catalog

import (
	"fmt"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// client is a pod on a node.
func client(name, node string) *registry.Pod {
	p := podOf(name, delivery.ByAgent, nil)
	p.Node = node
	return p
}

// slice has the endpoints of the world's Service.
func (w *world) slice(endpoints ...registry.Endpoint) []Touched {
	w.t.Helper()
	touched, _ := w.object(registry.Slices, "a/web-1", &registry.Slice{ID: "a/web-1", Namespace: "a", Name: "web-1", ServiceID: "a/web",
		Ports: []registry.SlicePort{{Name: "http", Number: 8080}}, Endpoints: endpoints})
	return touched
}

func (w *world) web(local bool) {
	w.t.Helper()
	s := *w.snap.Service("a/web")
	s.Local = local
	w.set(&s)
}

// Endpoints that differ by where a client is are in the layers of its node or its zone, and go with what makes them differ.
func TestClientsHaveTheEndpointsOfTheirPlace(t *testing.T) {
	w := newWorld(t)
	w.object(registry.Nodes, "n1", &registry.Node{ID: "n1", Zone: "east"})
	one, two := w.Join(client("one", "n1"), translate.ModuleSent), w.Join(client("two", "n2"), translate.ModuleSent)
	expect := func(what string, of Subject, place compile.Place) {
		t.Helper()
		if got := w.Find(of, deltaxds.EndpointType, webCluster); got != (Endpoints{"a/web", 80, registry.IPv4, place, false}) {
			t.Errorf("%s: the client on %s has %+v", what, of.node, got)
		}
		if names := w.Names(of, deltaxds.EndpointType); len(names) != 1 {
			t.Errorf("%s: the client on %s has %q", what, of.node, names)
		}
	}
	everywhere := registry.Endpoint{Address: "10.0.0.8", Ready: true, Node: "n1"}
	w.slice(everywhere)
	expect("nothing in particular", one, compile.Place{})
	w.web(true)
	expect("local", one, compile.OnNode("n1"))
	expect("local", two, compile.OnNode("n2"))
	late := w.Join(client("late", "n2"), translate.ModuleSent)
	expect("local, and the client came later", late, compile.OnNode("n2"))
	w.web(false)
	expect("no longer local", one, compile.Place{})

	zonal := everywhere
	zonal.ForZones = []string{"east"}
	w.slice(zonal)
	expect("by zone", one, compile.InZone("east"))
	expect("by zone", two, compile.InZone(""))
	_, following := w.object(registry.Nodes, "n1", &registry.Node{ID: "n1", Zone: "west"})
	for _, p := range following {
		if p.ID == one.Pod() {
			one, _ = w.Follow(one, p)
		}
	}
	expect("by zone, after the node's has changed", one, compile.InZone("west"))

	nodal := zonal
	nodal.ForNodes = []string{"n3"}
	w.slice(nodal)
	expect("by node", one, compile.OnNode("n1"))
	touched, _ := w.object(registry.Nodes, "n1", &registry.Node{ID: "n1", Zone: "east"})
	if len(touched) != 1 || touched[0].Resource != (Endpoints{"a/web", 80, registry.IPv4, compile.OnNode("n1"), false}) {
		t.Errorf("when the zone of a node changes, whose endpoints are by node and else by zone, %v are touched", touched)
	}
	for _, s := range []Subject{one, two, late} {
		w.Leave(s)
	}
	if len(w.places)+len(w.where) != 0 || w.spread != nil {
		t.Errorf("%v and %v are left", w.places, w.spread)
	}
}

// A Service whose endpoints are everybody's costs the same on however many nodes, and one whose are not costs one resource for each.
func TestAServiceThatIsTheSameEverywhereIsMadeOnce(t *testing.T) {
	w := newWorld(t)
	for i := range 50 {
		w.Join(client(fmt.Sprint("client-", i), fmt.Sprint("node-", i)), translate.ModuleSent)
	}
	count := func(touched []Touched) (n int) {
		for _, x := range touched {
			if x.Type() == deltaxds.EndpointType {
				n++
			}
		}
		return n
	}
	if n := count(w.slice(registry.Endpoint{Address: "10.0.0.8", Ready: true})); n != 1 {
		t.Errorf("%d resources are touched", n)
	}
	if n := count(w.slice(registry.Endpoint{Address: "10.0.0.9", Ready: true, ForZones: []string{"east"}})); n != 2 { // what everybody had, and that of the one zone
		t.Errorf("by zone, %d resources are touched", n)
	}
	if n := count(w.slice(registry.Endpoint{Address: "10.0.0.8", Ready: true, ForZones: []string{"east"}})); n != 1 {
		t.Errorf("by zone, %d resources are touched", n)
	}
	w.web(true)
	if n := count(w.slice(registry.Endpoint{Address: "10.0.0.9", Ready: true})); n != 50 {
		t.Errorf("local, %d resources are touched", n)
	}
}
