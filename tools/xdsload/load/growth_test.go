package load

import (
	"math"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

func TestSlopeIsTheExponent(t *testing.T) {
	x := []float64{250, 1000, 4000}
	for _, want := range []float64{-0.04, 0, 0.5, 1, 2} {
		var y []float64
		for _, v := range x {
			y = append(y, 3*math.Pow(v, want))
		}
		if got := slope(x, y); math.Abs(got-want) > 1e-9 {
			t.Errorf("of x^%g the slope is %g", want, got)
		}
	}
}

// A table has the sizes side by side, each row with its own figures, and the slopes of what a change costs.
func TestGrowthIsATable(t *testing.T) {
	g := &Growth{}
	for _, n := range []int{250, 1000, 4000} {
		s := world.Sizes{Kind: world.Closed, Nodes: 10, PodsPerNode: 20, Services: n, Endpoints: 4, Namespaces: 10, Targets: 10}
		g.Results = append(g.Results, &Result{Sizes: s, Proxies: 200, Idle: Rate{Over: time.Second},
			Endpoint: Changes{CPU: CPU{Pilot: time.Duration(n) * time.Microsecond, Agents: time.Millisecond}}})
	}
	table := g.Table()
	found := false
	for _, row := range table.Rows {
		if len(row) != 4 || len(table.Columns) != 4 {
			t.Fatalf("row %q for columns %q", row, table.Columns)
		}
		if row[0] == "slope of log CPU of Pilot (of agents) against log services, endpoint change" {
			found = true
			if row[1] != "1.00 (0.00)" {
				t.Errorf("the slope is %s", row[1])
			}
		}
	}
	if !found {
		t.Errorf("no slope in %q", table.Rows)
	}
}
