package compile_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// TestNearestEndpointsAreKubeProxys has the rows of kube-proxy's own test of CategorizeEndpoints that concern clients within the cluster.
func TestNearestEndpointsAreKubeProxys(t *testing.T) {
	type e = registry.Endpoint
	here, there, gone := compile.OnNode("here"), compile.OnNode("there"), compile.OnNode("unlabelled")
	ready := func(address, node string) e { return e{Address: address, Node: node, Ready: true} }
	leaving := func(address, node string) e { return e{Address: address, Node: node, Leaving: true} }
	forZones := func(of e, zones ...string) e { of.ForZones = zones; return of }
	forNodes := func(of e, nodes ...string) e { of.ForNodes = nodes; return of }
	for _, c := range []struct {
		what      string
		local     bool
		endpoints []e
		want      map[compile.Place][]string // of the places where it differs from that of clients anywhere
		anywhere  []string
	}{
		{what: "ready ones", endpoints: []e{ready("1", "here"), ready("2", "there"), {Address: "3", Node: "here"}}, anywhere: []string{"1", "2"}},
		{what: "none", endpoints: []e{{Address: "3", Node: "here"}}},
		{what: "those that end serve if nothing is ready", endpoints: []e{leaving("1", "here"), leaving("2", "there"), {Address: "3"}}, anywhere: []string{"1", "2"}},
		{what: "those that end do not serve beside one that is ready", endpoints: []e{leaving("1", "here"), ready("2", "there")}, anywhere: []string{"2"}},
		{what: "local", local: true, endpoints: []e{ready("1", "here"), ready("2", "there"), ready("3", "here"), ready("4", "")},
			want: map[compile.Place][]string{here: {"1", "3"}, there: {"2"}}},
		{what: "local, of which none is here", local: true, endpoints: []e{ready("2", "there")}, want: map[compile.Place][]string{there: {"2"}}},
		{what: "local, ending here and ready there", local: true, endpoints: []e{leaving("1", "here"), ready("2", "there")},
			want: map[compile.Place][]string{here: {"1"}, there: {"2"}}},
		{what: "local, and meant for others", local: true, endpoints: []e{forZones(ready("1", "here"), "west"), forZones(ready("2", "there"), "east")},
			want: map[compile.Place][]string{here: {"1"}, there: {"2"}}},
		{what: "by zone", endpoints: []e{forZones(ready("1", "here"), "east"), forZones(ready("2", "there"), "west"), forZones(ready("3", "there"), "east", "west")},
			want:     map[compile.Place][]string{compile.InZone("east"): {"1", "3"}, compile.InZone("west"): {"2", "3"}, here: {"1", "3"}, there: {"2", "3"}},
			anywhere: []string{"1", "2", "3"}},
		{what: "by zone, of which one has none", endpoints: []e{forZones(ready("1", "here"), "east"), ready("2", "there")}, anywhere: []string{"1", "2"}},
		{what: "by zone, and the client's has none", endpoints: []e{forZones(ready("1", "here"), "north")}, anywhere: []string{"1"}},
		{what: "by zone, and what is not ready counts for nothing", endpoints: []e{forZones(ready("1", "here"), "east"), forZones(ready("2", "there"), "west"), leaving("3", "there"), {Address: "4"}},
			want:     map[compile.Place][]string{compile.InZone("east"): {"1"}, compile.InZone("west"): {"2"}, here: {"1"}, there: {"2"}},
			anywhere: []string{"1", "2"}},
		{what: "by zone, and all end", endpoints: []e{forZones(leaving("1", "here"), "east"), forZones(leaving("2", "there"), "west")}, anywhere: []string{"1", "2"}},
		{what: "by node", endpoints: []e{forNodes(ready("1", "here"), "here"), forNodes(ready("2", "there"), "there", "here")},
			want: map[compile.Place][]string{there: {"2"}}, anywhere: []string{"1", "2"}},
		{what: "by node, and else by zone", endpoints: []e{forNodes(forZones(ready("1", "x"), "east"), "x"), forNodes(forZones(ready("2", "there"), "west"), "there")},
			want: map[compile.Place][]string{here: {"1"}, there: {"2"}, compile.InZone("east"): {"1"}, compile.InZone("west"): {"2"}}, anywhere: []string{"1", "2"}},
		{what: "by node, of which one has none, and so by zone", endpoints: []e{forNodes(forZones(ready("1", "here"), "east"), "there"), forZones(ready("2", "there"), "west")},
			want: map[compile.Place][]string{here: {"1"}, there: {"2"}, compile.InZone("east"): {"1"}, compile.InZone("west"): {"2"}}, anywhere: []string{"1", "2"}},
	} {
		s := &registry.Service{ID: "a/s", Namespace: "a", Name: "s", Local: c.local, Ports: []registry.ServicePort{{Name: "web", Number: 80, Protocol: protocol.HTTP}}}
		slice := &registry.Slice{ID: "a/s-1", Namespace: "a", ServiceID: "a/s", Ports: []registry.SlicePort{{Name: "web", Number: 80}}, Endpoints: c.endpoints}
		snap := world(t, s, slice, &registry.Node{ID: "here", Zone: "east"}, &registry.Node{ID: "there", Zone: "west"}, &registry.Node{ID: "unlabelled"})
		candidates := compile.Candidates(snap, settings, s, 80, registry.IPv4)
		spread := compile.SpreadOf(snap, s)
		for _, at := range []compile.Place{{}, here, there, gone, compile.OnNode("unknown"), compile.InZone("east"), compile.InZone("west"), compile.InZone("")} {
			if c.local && !spread.Of(at) {
				continue // nobody is sent these
			}
			var got []string
			for _, ep := range compile.Nearest(snap, s, candidates, at) {
				got = append(got, ep.Address)
			}
			want, differs := c.want[at]
			if !differs {
				want = c.anywhere
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, at %q: %s", c.what, at, d)
			}
			if spread.Everywhere() && !slices.Equal(want, c.anywhere) {
				t.Errorf("%s: clients at %q are to have endpoints of their own, and all have the same", c.what, at)
			}
		}
	}
}

// An address that moves from one slice to another is in both for a moment.
func TestAnEndpointIsReadyWhereverThatIsSaid(t *testing.T) {
	s := &registry.Service{ID: "a/s", Namespace: "a", Name: "s", Ports: []registry.ServicePort{{Name: "web", Number: 80}}}
	slice := func(name string, e registry.Endpoint) *registry.Slice {
		return &registry.Slice{ID: "a/" + name, Namespace: "a", ServiceID: "a/s", Ports: []registry.SlicePort{{Name: "web", Number: 80}}, Endpoints: []registry.Endpoint{e}}
	}
	snap := world(t, s, slice("one", registry.Endpoint{Address: "1", Leaving: true}), slice("two", registry.Endpoint{Address: "1", Ready: true}),
		slice("three", registry.Endpoint{Address: "2", Leaving: true}))
	if got := compile.Nearest(snap, s, compile.Candidates(snap, settings, s, 80, registry.IPv4), compile.Place{}); len(got) != 1 || got[0].Address != "1" {
		t.Errorf("%+v", got)
	}
}
