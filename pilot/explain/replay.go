package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Changed is recorded decisions that other policies would make otherwise.
type Changed struct {
	Count    int    `json:"count"`
	Before   string `json:"before"` // as recorded: allowed or denied
	After    string `json:"after"`  // allowed, denied, or unknown
	Client   string `json:"client"`
	Workload string `json:"workload"`
	Port     uint32 `json:"port"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"` // a template by the Rules
	Why      string `json:"why"`
	Event    uint64 `json:"event"` // index of one of them
}

// Replayed is what became of recorded decisions.
type Replayed struct {
	Decisions int            `json:"decisions"` // that were decided again
	Changed   []Changed      `json:"changed"`
	Unknown   []Changed      `json:"unknown,omitempty"` // of which the trail does not say enough
	Skipped   map[string]int `json:"skipped,omitempty"` // records that were left out, by why
	Notes     []string       `json:"notes,omitempty"`
}

// Replay decides recorded requests by the policies of a mesh.
func (m *Mesh) Replay(records []*telemetryv1.Record) *Replayed {
	s := &sight{mesh: m, targets: map[string]*target{}}
	out := &Replayed{Changed: []Changed{}, Skipped: map[string]int{}}
	groups := map[Changed]*Changed{}
	for _, record := range records {
		o, why := s.see(record)
		if why != "" {
			out.Skipped[why]++
			continue
		}
		out.Decisions++
		d, certain := o.then(m)
		if certain && d.Allowed == o.allowed {
			continue
		}
		c := Changed{Before: decided(o.allowed), After: decided(d.Allowed), Workload: o.workload.Name, Port: o.request.DestinationPort, Client: "no identity"}
		if !o.from.IsZero() {
			c.Client = o.from.Principal()
		}
		if o.request.HTTP {
			c.Method, c.Path = o.request.Method, templateOf(o.request.Path)
		}
		c.Why = cmp.Or(d.Policy, d.Reason)
		if !certain {
			c.After, c.Why = "unknown", "it depends on "+o.depends()+", which the trail does not record"
		}
		g := groups[c]
		if g == nil {
			first := c
			first.Event = o.index
			g = &first
			groups[c] = g
		}
		g.Count++
	}
	for _, g := range groups {
		list := &out.Changed
		if g.After == "unknown" {
			list = &out.Unknown
		}
		*list = append(*list, *g)
	}
	for _, list := range [][]Changed{out.Changed, out.Unknown} {
		slices.SortFunc(list, func(a, b Changed) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Event, b.Event))
		})
	}
	out.Notes = s.notes(len(records))
	return out
}

func decided(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

// notes say what the trail cannot tell.
func (s *sight) notes(records int) (out []string) {
	if records == 0 {
		return []string{"there is no record of the time asked for"}
	}
	names := map[string]bool{}
	for _, t := range s.targets {
		if t != nil && !t.audited {
			names[t.workload.Name] = true
		}
	}
	out = append(out, "what was allowed is recorded only where an AUDIT policy selects it, or one on trial would deny it: other requests are not known here")
	if len(names) > 0 {
		unselected := slices.Sorted(maps.Keys(names))
		some := fmt.Sprint(unselected[:min(5, len(unselected))])
		out = append(out, "no AUDIT policy selects "+some[1:len(some)-1]+", so of "+fmt.Sprint(len(unselected))+" such workloads only denials are known")
	}
	return out
}
