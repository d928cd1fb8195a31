package explain

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/space"
)

// Change is requests about which other policies decide otherwise, or ask otherwise.
type Change struct {
	Access
	Before  bool   `json:"before"` // allowed; of an authorizer: asked
	After   bool   `json:"after"`
	Asked   string `json:"authorizer,omitempty"` // the external authorizer that is asked about them before or after; empty: it is the policies' own verdict that changes
	Example string `json:"example"`              // one of these requests
	Client  string `json:"exampleClient"`
}

// Difference is all that other policies change.
type Difference struct {
	Changes  []Change `json:"changes"`
	Compared int      `json:"compared"` // workloads
	Untold   []Untold `json:"untold,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// Diff finds what is decided differently by two meshes, at workloads that are in both.
func Diff(before, after *Mesh) *Difference {
	out := &Difference{Changes: []Change{}}
	was, is := byName(before), byName(after)
	known := map[string][]pair{} // by what they depend on, as workloads have the same policies often
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[name]; !ok {
			out.Notes = append(out.Notes, "workload "+name+" is in one of them alone, and not compared")
			continue
		}
		out.Compared++
		a, b := before.compiled(was[name]), after.compiled(is[name])
		if same(a, b) {
			continue
		}
		out.compare(known, before, name, "", a, b)
		for _, authorizer := range authorizers(a, b) {
			out.compare(known, before, name, authorizer, a, b)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(is)) {
		if _, ok := was[name]; !ok {
			out.Notes = append(out.Notes, "workload "+name+" is in one of them alone, and not compared")
		}
	}
	out.Notes = append(out.Notes, broken(before, after)...)
	return out
}

// compare adds what changes at a workload, of its policies' verdict, or of what an authorizer is asked about.
func (d *Difference) compare(known map[string][]pair, m *Mesh, name, authorizer string, a, b compile.Workload) {
	at := map[string]int{}
	for _, e := range entrances(a, b) {
		pairs, err := compare(known, m, canonical(asking(authorizer, side(a, e), side(b, e))))
		if err != nil {
			d.Untold = append(d.Untold, Untold{name, e.label, err.Error()})
			continue
		}
		for _, p := range pairs {
			p.example.DestinationPort = e.port
			c := Change{accessOf(name, e, p.region), p.region.Allowed[0], p.region.Allowed[1], authorizer, p.example.Describe(), "no identity"}
			if authorizer != "" {
				c.Before, c.After = !c.Before, !c.After
			}
			if !p.example.Source.IsZero() {
				c.Client = p.example.Source.Principal()
			}
			if i, ok := at[c.key()]; ok && d.Changes[i].Before == c.Before && d.Changes[i].After == c.After {
				d.Changes[i].Ports = append(d.Changes[i].Ports, e.label)
				continue
			}
			at[c.key()] = len(d.Changes)
			d.Changes = append(d.Changes, c)
		}
	}
}

// authorizers are those that the policies of workloads have asked.
func authorizers(of ...compile.Workload) []string {
	names := map[string]bool{}
	for _, w := range of {
		for _, a := range w.Authorizers {
			names[a.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// asking are sides, about whether an authorizer is asked; if none is named, about what policies decide.
func asking(authorizer string, sides ...space.Side) []space.Side {
	for i := range sides {
		sides[i].Asked = authorizer
	}
	return sides
}

// broken notes the policies that cannot be enforced after the change and could before, or were not there.
func broken(before, after *Mesh) (out []string) {
	for p := range after.snap.Policies() {
		was := false
		for old := range before.snap.Policies() {
			was = was || old.ID == p.ID && len(old.Problems) > 0
		}
		if len(p.Problems) > 0 && !was {
			out = append(out, p.ID+" cannot be enforced as it is written, and fails closed: "+p.Problems[0].Error())
		}
	}
	return out
}

func byName(m *Mesh) map[string]Workload {
	out := map[string]Workload{}
	for _, w := range m.Workloads("") {
		if _, ok := out[w.Name]; !ok {
			out[w.Name] = w
		}
	}
	return out
}

// same reports whether two workloads decide alike, at a glance.
func same(a, b compile.Workload) bool {
	return reflect.DeepEqual(a.Policies, b.Policies) && a.Other == b.Other && slices.Equal(a.Ports, b.Ports)
}

// pair is a region with an example.
type pair struct {
	region  space.Region
	example authz.Request
}

// canonical are sides that decide alike, at one port of all that no policy of theirs names.
func canonical(sides []space.Side) []space.Side {
	for _, s := range sides {
		for _, p := range s.Policies {
			if slices.Contains(p.Ports(), s.Port) {
				return sides
			}
		}
	}
	for i := range sides {
		sides[i].Port = 0
	}
	return sides
}

func compare(known map[string][]pair, m *Mesh, sides []space.Side) ([]pair, error) {
	key := keyOf(sides[0]) + "\x00" + keyOf(sides[1])
	if pairs, ok := known[key]; ok {
		return pairs, nil
	}
	s, err := space.Divide(sides, m.set.TrustDomains(), true)
	if err != nil {
		return nil, err
	}
	regions, err := s.Regions()
	if err != nil {
		return nil, err
	}
	pairs := make([]pair, 0, len(regions))
	for _, r := range regions {
		example, _ := s.Example(r, sides[0])
		pairs = append(pairs, pair{r, example})
	}
	slices.SortStableFunc(pairs, func(x, y pair) int { return cmp.Compare(x.example.Source.String(), y.example.Source.String()) })
	known[key] = pairs
	return pairs, nil
}

// keyOf tells the sides of one mesh apart.
func keyOf(s space.Side) string {
	key := string(s.Mode) + " " + s.Asked
	if s.HTTP {
		key += " HTTP"
	}
	key += " " + authz.Request{DestinationPort: s.Port}.Describe()
	for _, p := range s.Policies {
		key += " " + p.Namespace + "/" + p.Name
	}
	return key
}
