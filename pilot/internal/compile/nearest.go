package compile

import (
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Candidate is an endpoint with what its slice says of who is to use it, and when.
type Candidate struct {
	Endpoint
	slice registry.Endpoint
}

// Place is where clients are, as far as it matters to a service: anywhere, in a zone, or on a node.
type Place struct {
	kind placeKind
	name string
}

type placeKind uint8

const (
	anywhere placeKind = iota
	inZone
	onNode
)

// InZone is the place of clients in a zone, of which "" is that of nodes without one.
func InZone(zone string) Place { return Place{inZone, zone} }

// OnNode is the place of clients on a node.
func OnNode(node string) Place { return Place{onNode, node} }

// String names the place, differently from every other.
func (p Place) String() string {
	switch p.kind {
	case inZone:
		return "zone " + p.name
	case onNode:
		return "node " + p.name
	}
	return ""
}

// Spread says by what of its clients' place a service's endpoints differ.
type Spread struct{ kind placeKind }

// SpreadOf returns the spread of a service. For most it is zero: all clients have the same endpoints. Behind a headless service they choose.
func SpreadOf(snap *registry.Snapshot, s *registry.Service) (out Spread) {
	if s.Headless {
		return out
	}
	if s.Local {
		return Spread{onNode}
	}
	for slice := range snap.SlicesOf(s.ID) {
		for _, e := range slice.Endpoints {
			if e.Ready && len(e.ForNodes) > 0 {
				return Spread{onNode}
			}
			if e.Ready && len(e.ForZones) > 0 {
				out.kind = inZone
			}
		}
	}
	return out
}

// Of reports whether clients at a place have endpoints of their own.
func (s Spread) Of(p Place) bool { return s.kind == p.kind }

// Everywhere reports whether all clients have the same endpoints.
func (s Spread) Everywhere() bool { return s.kind == anywhere }

// Nearest returns the endpoints that clients at a place use, which are those that kube-proxy would choose on their node (CategorizeEndpoints
// of its pkg/proxy/topology.go): the ready ones, or else those that end and still serve; of a service that is local those of the node; of others
// those that are meant for the node, or else for its zone, if each ready one is meant for some node, or zone, and one for theirs.
func Nearest(snap *registry.Snapshot, s *registry.Service, candidates []Candidate, at Place) []Endpoint {
	node, zone := "", at.name
	if at.kind == onNode {
		node, zone = at.name, snap.ZoneOf(at.name)
	}
	if s.Local {
		candidates = slices.DeleteFunc(slices.Clone(candidates), func(c Candidate) bool { return c.slice.Node != node || node == "" })
	}
	var ready, leaving []Candidate
	for _, c := range candidates {
		if c.slice.Ready {
			ready = append(ready, c)
		} else {
			leaving = append(leaving, c)
		}
	}
	switch {
	case len(ready) == 0:
		return endpoints(leaving)
	case s.Local || at.kind == anywhere:
		return endpoints(ready)
	}
	forNodes := func(c Candidate) []string { return c.slice.ForNodes }
	forZones := func(c Candidate) []string { return c.slice.ForZones }
	if meant := meantFor(ready, forNodes, node); at.kind == onNode && meant != nil {
		return meant
	}
	if meant := meantFor(ready, forZones, zone); meant != nil {
		return meant
	}
	return endpoints(ready)
}

// meantFor returns the endpoints whose hints have a name, or nil if none has it or one has no hint at all.
func meantFor(candidates []Candidate, hints func(Candidate) []string, name string) (out []Endpoint) {
	for _, c := range candidates {
		named := hints(c)
		if len(named) == 0 {
			return nil
		}
		if slices.Contains(named, name) {
			out = append(out, c.Endpoint)
		}
	}
	return out
}

func endpoints(candidates []Candidate) (out []Endpoint) {
	for _, c := range candidates {
		out = append(out, c.Endpoint)
	}
	return out
}
