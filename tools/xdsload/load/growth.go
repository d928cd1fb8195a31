package load

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

// Growth is the same experiment with several numbers of services.
type Growth struct {
	Results []*Result `json:"results"`
}

// RunGrowth runs the experiment with each number of services.
func RunGrowth(ctx context.Context, o Options) (*Growth, error) {
	g := &Growth{}
	for _, n := range o.Growth {
		o.Services = n
		if err := o.Validate(); err != nil {
			return nil, fmt.Errorf("%d services: %w", n, err)
		}
	}
	for _, n := range o.Growth {
		o.Services = n
		r, err := runOne(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%d services: %w", n, err)
		}
		g.Results = append(g.Results, r)
	}
	return g, nil
}

// runOne runs one of several experiments, and shows at once what it has measured: the others may take hours, and fail.
func runOne(ctx context.Context, o Options) (*Result, error) {
	r, err := Run(ctx, o)
	if err != nil {
		return nil, err
	}
	o.show(r)
	return r, nil
}

// show shows what was measured beside what comes of it in the end.
func (o Options) show(r *Result) {
	if r == nil {
		return
	}
	var text strings.Builder
	t := r.Table()
	_ = t.Write(&text) // to memory
	o.Progress("%s", text.String())
}

// Table implements report.Tabular: the experiments side by side, then how what a change costs grows.
func (g *Growth) Table() report.Table {
	t := report.Table{Columns: []string{"what"}}
	rows := [][]string{}
	for i, r := range g.Results {
		t.Columns = append(t.Columns, fmt.Sprintf("%d services", r.Services))
		for j, row := range r.Table().Rows {
			if i == 0 {
				rows = append(rows, []string{row[0]})
			}
			rows[j] = append(rows[j], row[1])
		}
	}
	t.Rows = rows
	if len(g.Results) < 2 {
		return t
	}
	for i, s := range g.Results[0].series() {
		row := []string{"slope of log CPU of Pilot (of agents) against log services, " + s.name, g.slopes(i)}
		t.Row(append(row, make([]string, len(g.Results)-1)...)...)
	}
	return t
}

// slopes are those of the i-th series: Pilot's, and that of the agents together.
func (g *Growth) slopes(i int) string {
	if len(g.Results) < 2 {
		return "–"
	}
	pilot := g.slope(func(r *Result) time.Duration { return r.series()[i].Pilot })
	agents := g.slope(func(r *Result) time.Duration { return r.series()[i].Agents })
	return fmt.Sprintf("%.2f (%.2f)", pilot, agents)
}

func (g *Growth) slope(cost func(*Result) time.Duration) float64 {
	var x, y []float64
	for _, r := range g.Results {
		x = append(x, float64(r.Services))
		y = append(y, float64(max(cost(r), time.Microsecond))) // what cannot be measured has no logarithm
	}
	return slope(x, y)
}

// slope is that of the line that fits the logarithms best: of y ~ x^s it is s.
func slope(x, y []float64) float64 {
	var meanX, meanY float64
	n := float64(len(x))
	for i := range x {
		meanX += math.Log(x[i]) / n
		meanY += math.Log(y[i]) / n
	}
	var both, square float64
	for i := range x {
		dx := math.Log(x[i]) - meanX
		both += dx * (math.Log(y[i]) - meanY)
		square += dx * dx
	}
	return both / square
}
