package push

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Enforcement says how many proxies have taken what a policy means for them.
type Enforcement struct {
	Generation int64     // of the policy that this is about; 0: there is none of the name
	Proxies    int       // connected ones of pods that it selects
	Taken      int       // of them, those that have acknowledged it
	Lagging    []Laggard // others, as many as were asked for, in the order of names
}

// Laggard is a proxy that has not taken a policy yet.
type Laggard struct {
	Proxy  string // <pod>.<namespace>
	Reason string
}

// enforcing are the types of the resources by which policies hold. What proxies have of clusters and endpoints is for their own calls.
var enforcing = []string{deltaxds.ListenerType, deltaxds.RouteType, deltaxds.ExtensionConfigType}

// progress is how far proxies are with policies. All that a policy means for a proxy is in what the pod's class has, so it is enforced there if
// the proxy has taken that as it was when the policy came, or later. So a policy costs its classes, and not its proxies, but for those that lag.
type progress struct {
	turn    uint64                        // rises with each change of the mesh
	since   map[registry.PolicyRef]uint64 // the turn in which a policy became what it is, if that is known
	fleets  map[catalog.Layer]*fleet      // by the layers of their classes
	in      map[string]map[*fleet]bool    // by namespace
	changed map[registry.PolicyRef]bool   // since Moved was called last
	stirred map[*fleet]bool               // proxies of it have come or gone since then
	news    chan struct{}                 // capacity one
}

// fleet is the connected proxies of a class.
type fleet struct {
	class   compile.Class
	layer   catalog.Layer
	proxies map[*member]bool
	lagging map[*member]bool // those that have not taken all that the class has
}

// standing is a proxy's membership in a fleet.
type standing struct {
	fleet *fleet
	taken uint64 // the last turn of which it has all, if it lags now
}

func newProgress() progress {
	return progress{
		turn: 1, since: map[registry.PolicyRef]uint64{}, fleets: map[catalog.Layer]*fleet{}, in: map[string]map[*fleet]bool{}, changed: map[registry.PolicyRef]bool{},
		stirred: map[*fleet]bool{}, news: make(chan struct{}, 1),
	}
}

// News is told when Moved has something to say, or a proxy has taken something.
func (s *Store) News() <-chan struct{} { return s.progress.news }

// Moved returns the policies that have changed, and those whose proxies have come or gone, since it was called last.
func (s *Store) Moved() (out []registry.PolicyRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.progress.changed {
		out = append(out, ref)
	}
	if len(s.progress.stirred) > 0 {
		for kind, v := range registry.Verdicts(s.catalog.Snapshot()) {
			ref := registry.PolicyRef{Kind: kind, ID: v.Namespace + "/" + v.Name}
			if s.progress.changed[ref] || !kind.IsCounted() {
				continue
			}
			for f := range s.progress.stirred {
				if compile.HoldsFor(s.catalog.Snapshot(), s.settings.RootNamespace, v, f.class.Namespace, f.class.Labels) {
					out = append(out, ref)
					break
				}
			}
		}
	}
	clear(s.progress.changed)
	clear(s.progress.stirred)
	return out
}

// Nodes are those whose agents are connected here.
func (s *Store) Nodes() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.agents {
		out = append(out, a.pod.Node)
	}
	return out
}

// Enforcement says how far connected proxies are with policies, in their order. It names so many of those that lag, the first by name.
func (s *Store) Enforcement(policies []registry.PolicyRef, names int) []Enforcement {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Enforcement, len(policies))
	for i, ref := range policies {
		if v, ok := registry.VerdictOn(s.catalog.Snapshot(), ref.Kind, ref.ID); ok {
			out[i] = s.enforcement(v, max(1, s.progress.since[ref]), names)
		}
	}
	return out
}

// enforcement looks at the fleets that a policy selects, and in them at the proxies that lag.
func (s *Store) enforcement(v registry.Verdict, since uint64, names int) Enforcement {
	out := Enforcement{Generation: v.Generation}
	of := func(fleets map[*fleet]bool) {
		for f := range fleets {
			if !compile.HoldsFor(s.catalog.Snapshot(), s.settings.RootNamespace, v, f.class.Namespace, f.class.Labels) {
				continue
			}
			out.Proxies += len(f.proxies)
			out.Taken += len(f.proxies)
			for p := range f.lagging {
				if p.standing.taken < since {
					out.Taken--
					out.Lagging = append(out.Lagging, Laggard{Proxy: proxyName(p.id)})
				}
			}
		}
	}
	if v.Namespace != s.settings.RootNamespace {
		of(s.progress.in[v.Namespace])
	} else {
		for _, fleets := range s.progress.in {
			of(fleets)
		}
	}
	slices.SortFunc(out.Lagging, func(a, b Laggard) int { return cmp.Compare(a.Proxy, b.Proxy) })
	out.Lagging = out.Lagging[:min(names, len(out.Lagging))]
	for i, l := range out.Lagging {
		for p := range s.pods[podID(l.Proxy)] {
			if p.standing.fleet != nil {
				_, out.Lagging[i].Reason = p.upToDate()
			}
		}
	}
	return out
}

// turn notes what a turn of things changes: policies, of which those that target a Service may be for others when it changes.
func (s *Store) turn(snap *registry.Snapshot, changes []registry.Change) {
	s.progress.turn++
	for _, ch := range changes {
		if ch.Kind == registry.Services {
			for _, ref := range snap.Targeting(ch.ID) {
				s.progress.since[ref] = s.progress.turn
				s.progress.changed[ref] = true
				s.progress.tell()
			}
		}
		if !ch.Kind.IsCounted() {
			continue
		}
		ref := registry.PolicyRef{Kind: ch.Kind, ID: ch.ID}
		if s.progress.since[ref] = s.progress.turn; ch.New == nil {
			delete(s.progress.since, ref)
		}
		s.progress.changed[ref] = true
		s.progress.tell()
	}
}

// overdue has the proxies of a class lag, of which a resource has changed in this turn.
func (s *Store) overdue(r catalog.Resource, l catalog.Layer) {
	f := s.progress.fleets[l]
	if f == nil || !slices.Contains(enforcing, r.Type()) {
		return
	}
	for p := range f.proxies {
		if !f.lagging[p] {
			p.standing.taken = s.progress.turn - 1
			p.lag()
		}
	}
}

// enlist has a pod's proxy be in the fleet of its class, if there is a proxy; it begins with nothing. It is called when any of this may have changed.
func (s *Store) enlist(p *member) {
	if f := p.standing.fleet; f != nil {
		delete(f.proxies, p)
		delete(f.lagging, p)
		delete(p.agent.lagging, p)
		s.progress.stirred[f] = true
		if in := s.progress.in[f.class.Namespace]; len(f.proxies) == 0 {
			delete(s.progress.fleets, f.layer)
			if delete(in, f); len(in) == 0 {
				delete(s.progress.in, f.class.Namespace)
			}
		}
	}
	p.standing = standing{}
	if p.admitted && !p.connected.IsZero() {
		f := s.progress.fleet(p.subject.Class(), s.catalog.ClassOf(p.subject))
		f.proxies[p] = true
		p.standing.fleet = f
		s.progress.stirred[f] = true
		p.lag()
	}
	s.progress.tell()
}

// fleet returns that of a class, which is to have a proxy.
func (p *progress) fleet(layer catalog.Layer, class compile.Class) *fleet {
	f := p.fleets[layer]
	if f == nil {
		f = &fleet{class, layer, map[*member]bool{}, map[*member]bool{}}
		p.fleets[layer] = f
		if p.in[class.Namespace] == nil {
			p.in[class.Namespace] = map[*fleet]bool{}
		}
		p.in[class.Namespace][f] = true
	}
	return f
}

func (p *member) lag() {
	p.standing.fleet.lagging[p] = true
	p.agent.lagging[p] = true
}

// catchUp notes which of an agent's proxies have taken all by now. Only those that lag are looked at.
func (a *agent) catchUp() {
	for p := range a.lagging {
		if ok, _ := p.upToDate(); ok {
			delete(p.standing.fleet.lagging, p)
			delete(a.lagging, p)
			a.store.progress.tell()
		}
	}
}

// upToDate says whether the proxy has acknowledged all that its class has, and otherwise what is missing.
func (p *member) upToDate() (bool, string) {
	layer := p.standing.fleet.layer.String()
	for _, url := range enforcing {
		name := short(url)
		switch st, asked := p.types[url]; {
		case st.Error != "":
			return false, fmt.Sprintf("it refuses %s resource %s: %s", name, cmp.Or(st.Resource, "(which one is being found out)"), st.Error)
		case !asked:
			return false, "it has not asked for " + name + " yet"
		case p.agent.session.BehindIn(p.uid, layer, url):
			return false, "the agent of node " + p.agent.pod.Node + " has not said yet that it has it"
		case st.Pending:
			return false, "it has not answered about " + name + " yet"
		}
	}
	return true, ""
}

func (p *progress) tell() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}
