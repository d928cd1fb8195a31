package load

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

// Worlds is the same experiments in several worlds.
type Worlds struct {
	Worlds []World `json:"worlds"`
}

// World is the experiments in one: with each number of services, and with so many pods on a node as is asked for.
type World struct {
	Growth
	Dense *Result `json:"dense,omitempty"`
}

// RunWorlds runs the experiments in each world.
func RunWorlds(ctx context.Context, o Options) (*Worlds, error) {
	out := &Worlds{}
	if len(o.Growth) == 0 {
		o.Growth = []int{o.Services}
	}
	for _, kind := range o.Worlds {
		o.Kind = world.Kind(kind)
		g, err := RunGrowth(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s world: %w", kind, err)
		}
		w := World{Growth: *g}
		if o.Dense > 0 {
			o := o
			o.PodsPerNode, o.Envoy, o.Changes = o.Dense, false, min(o.Changes, denseChanges)
			if w.Dense, err = runOne(ctx, o); err != nil {
				return nil, fmt.Errorf("%s world with %d pods on a node: %w", kind, o.Dense, err)
			}
		}
		out.Worlds = append(out.Worlds, w)
	}
	return out, nil
}

// denseChanges are enough where memory is what is asked about.
const denseChanges = 20

// Table implements report.Tabular: what was measured by row, the worlds side by side.
func (w *Worlds) Table() report.Table {
	t := report.Table{Columns: []string{"measure"}}
	for _, of := range w.Worlds {
		t.Columns = append(t.Columns, string(of.Results[0].Kind))
	}
	for _, m := range measures(w.Worlds[0].Results[0]) {
		row := []string{m.name}
		for _, of := range w.Worlds {
			var cells []string
			for _, r := range of.Results {
				cells = append(cells, m.of(r))
			}
			row = append(row, strings.Join(cells, " / ")+m.unit)
		}
		t.Row(row...)
	}
	for i, s := range w.Worlds[0].Results[0].series() {
		row := []string{"slope of log CPU of Pilot (of agents) against log services, " + s.name}
		for _, of := range w.Worlds {
			row = append(row, of.slopes(i))
		}
		t.Row(row...)
	}
	if dense := w.Worlds[0].Dense; dense != nil {
		row := []string{fmt.Sprintf("an agent's memory for %d pods, %d services", dense.PodsPerNode, dense.Services)}
		for _, of := range w.Worlds {
			row = append(row, report.MB(of.Dense.PerNode()))
		}
		t.Row(row...)
	}
	return t
}

// measure is a figure of an experiment.
type measure struct {
	name, unit string
	of         func(*Result) string
}

// measures are the rows of the table of worlds, whose results are like one.
func measures(like *Result) []measure {
	return append(append([]measure{
		{"services", "", func(r *Result) string { return fmt.Sprint(r.Services) }},
		{"proxies; load average before", "", func(r *Result) string {
			return fmt.Sprintf("%d; %s", r.Proxies, strings.Fields(r.LoadAverage + " ?")[0])
		}},
		{"Pilot's start to ready: CPU", " s", func(r *Result) string { return seconds(r.Ready.CPU) }},
		{"first configuration of all: CPU of Pilot", " s", func(r *Result) string { return seconds(r.First.Pilot) }},
		{"first configuration of all: CPU of agents, a pod", " ms", func(r *Result) string { return millis(r.First.Agents / time.Duration(r.Proxies)) }},
		{"first configuration of all: from Pilot", " MB", func(r *Result) string { return megabytes(r.First.Wire.FromPilot) }},
		{"bytes to one Envoy at first", " MB", func(r *Result) string {
			return fmt.Sprintf("%.3f", float64(r.First.Traffic.Bytes)/float64(r.Proxies)/1e6)
		}},
		{"Pilot's memory a proxy", " MB", func(r *Result) string { return fmt.Sprintf("%.3f", r.PerProxy()/1e6) }},
		{"an agent's memory for the pods of its node", " MB", func(r *Result) string { return fmt.Sprintf("%.1f", r.PerNode()/1e6) }},
	}, ofChanges(like)...),
		measure{"Pilot killed and started: CPU of Pilot", " s", func(r *Result) string { return seconds(r.Restart.Pilot) }},
		measure{"of which until it was ready", " s", func(r *Result) string { return seconds(r.Restart.Ready) }},
		measure{"Pilot killed and started: CPU of agents, a pod", " ms", func(r *Result) string { return millis(r.Restart.Agents / time.Duration(r.Proxies)) }},
		measure{"Pilot killed and started: from Pilot; to it", " MB", func(r *Result) string {
			return megabytes(r.Restart.Wire.FromPilot) + "; " + megabytes(r.Restart.Wire.ToPilot)
		}},
		measure{"a real Envoy's memory above an empty one's", " MB", func(r *Result) string {
			if r.Envoy == nil {
				return "–"
			}
			return fmt.Sprintf("%.1f", float64(r.Envoy.Configured.Resident-r.Envoy.Empty.Resident)/1e6)
		}})
}

// ofChanges are those of each kind of change.
func ofChanges(like *Result) (out []measure) {
	for i, s := range like.series() {
		of := func(r *Result) Changes { return r.series()[i].Changes }
		out = append(out,
			measure{s.name + ": the last proxy concerned, p50; p99", " ms", func(r *Result) string {
				return millis(of(r).Times.Percentile(50)) + "; " + millis(of(r).Times.Percentile(99))
			}},
			measure{s.name + ": of which the API request, p50", " ms", func(r *Result) string { return millis(of(r).Requests.Percentile(50)) }},
			measure{s.name + ": CPU of Pilot; of agents together", " ms", func(r *Result) string {
				return millis(of(r).Pilot) + "; " + millis(of(r).Agents)
			}},
			measure{s.name + ": proxies concerned; others told", "", func(r *Result) string {
				return fmt.Sprintf("%d; %.1f", of(r).Affected, float64(of(r).Strays)/float64(max(1, len(of(r).Times))))
			}})
	}
	return out
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }

func megabytes(n int64) string { return fmt.Sprintf("%.2f", float64(n)/1e6) }
