package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Endpoints is the addresses of a family of a port of a Service, as clients at a place use them. They have the name of the cluster. Of most services there are
// only those of clients anywhere; where clients of different zones or nodes are to have different ones, each zone or node that has clients has its own, in
// the layers that they have there.
type Endpoints struct {
	Service string // namespace/name
	Port    uint32
	Family  registry.Family
	For     compile.Place
	TLS     bool // of the cluster in which proxies speak it with the Service's applications (Cluster): an Envoy asks for endpoints once, and lets another cluster wait for the same ones
}

func (r Endpoints) Type() string { return deltaxds.EndpointType }
func (r Endpoints) Name() string { return clusterName(r.Service, r.Port, r.Family, r.TLS) }

func (r Endpoints) layers(c *Catalog) (out []Layer) {
	if !c.spread[r.Service].Of(r.For) || r.TLS && !securedForAny(c, r.Service, r.Port) {
		return nil
	}
	for _, l := range layersOfPort(c, r.Service, r.Port, r.Family) {
		out = append(out, l.at(r.For))
	}
	return out
}

func (r Endpoints) make(c *Catalog) proto.Message {
	s := c.snap.Service(r.Service)
	return translate.Endpoints(r.Name(), compile.Nearest(c.snap, s, c.candidates(r.Service, r.Port, r.Family), r.For))
}

// latest are the candidates that were asked for last: those of a port are asked for by one place after the other.
type latest struct {
	service    string
	port       uint32
	family     registry.Family
	candidates []compile.Candidate
}

func (c *Catalog) candidates(service string, port uint32, f registry.Family) []compile.Candidate {
	if c.latest.service != service || c.latest.port != port || c.latest.family != f {
		c.latest = latest{service, port, f, compile.Candidates(c.snap, c.settings, c.snap.Service(service), port, f)}
	}
	return c.latest.candidates
}

// spread is of the services whose endpoints are not the same everywhere, by "namespace/name".
type spread map[string]compile.Spread

func newSpread(c *Catalog) spread {
	out := spread{}
	for s := range c.snap.Services() {
		out.set(c, s.ID)
	}
	return out
}

func (m spread) set(c *Catalog, service string) {
	delete(m, service)
	if s := c.snap.Service(service); s != nil {
		if of := compile.SpreadOf(c.snap, s); !of.Everywhere() {
			m[service] = of
		}
	}
}

// renew looks at services again, and returns what they had.
func (m spread) renew(c *Catalog, services map[string]bool) (was spread) {
	was = spread{}
	for id := range services {
		if of, ok := m[id]; ok {
			was[id] = of
		}
		m.set(c, id)
	}
	return was
}

// endpointsAt lists what is in the layer of a place.
func endpointsAt(c *Catalog, l Layer) (out []Resource) {
	in := c.reach.in[l.at(compile.Place{})]
	for id, of := range c.spread {
		if !of.Of(l.place) || !in[id] {
			continue
		}
		out = append(out, endpointsFor(c, id, l.place)...)
	}
	return out
}

// bothEndpoints are those of a port, and those of its cluster in which proxies speak TLS with applications, if there is one.
func bothEndpoints(service string, port uint32, f registry.Family, at compile.Place, secured bool) []Resource {
	out := []Resource{Endpoints{service, port, f, at, false}}
	if secured {
		out = append(out, Endpoints{service, port, f, at, true})
	}
	return out
}

// endpointsFor lists the endpoints of a service that clients at a place have.
func endpointsFor(c *Catalog, service string, at compile.Place) (out []Resource) {
	s := c.snap.Service(service)
	for _, p := range s.Ports {
		for _, f := range s.Families() {
			out = append(out, bothEndpoints(service, p.Number, f, at, securedForAny(c, service, p.Number))...)
		}
	}
	return out
}

// endpointsOf lists the endpoints of a port that there are, and those that there were.
func endpointsOf(c *Catalog, t *turn, service string, port uint32, f registry.Family) (out []Resource) {
	now, was := c.spread[service], t.spread[service]
	if now.Everywhere() || was.Everywhere() {
		out = append(out, bothEndpoints(service, port, f, compile.Place{}, true)...)
	}
	if now.Everywhere() && was.Everywhere() {
		return out
	}
	for p := range c.places {
		if now.Of(p) || was.Of(p) {
			out = append(out, bothEndpoints(service, port, f, p, true)...)
		}
	}
	return out
}

// endpointsOn lists what clients on some nodes have: those that are meant for a zone follow that of the node.
func endpointsOn(c *Catalog, nodes map[string]bool) (out []Resource) {
	for node := range nodes {
		at := compile.OnNode(node)
		if c.places[at] == 0 {
			continue
		}
		for id, of := range c.spread {
			if !of.Of(at) {
				continue
			}
			out = append(out, endpointsFor(c, id, at)...)
		}
	}
	return out
}
