package load

import (
	"slices"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

func resultOf(kind world.Kind, services int) *Result {
	n := time.Duration(services)
	change := func(pilot time.Duration) Changes {
		return Changes{Affected: 20, Times: report.Durations{n * time.Microsecond, 2 * n * time.Microsecond},
			Requests: report.Durations{time.Millisecond, time.Millisecond}, CPU: CPU{Pilot: pilot, Agents: time.Millisecond}, Strays: 1}
	}
	return &Result{
		Sizes:   world.Sizes{Kind: kind, Nodes: 10, PodsPerNode: 20, Services: services, Endpoints: 4, Namespaces: 10, Targets: 10},
		Proxies: 200, LoadAverage: "0.10 0.20 0.30", Ready: Start{CPU: 40 * time.Millisecond}, Idle: Rate{Over: time.Second},
		First: Episode{CPU: CPU{n * time.Millisecond, 200 * n * time.Microsecond}, Traffic: fleet.Traffic{Bytes: 200 * int64(services) * 1e3},
			Wire: agents.Count{FromPilot: int64(services) * 1e5}},
		Before:   Memory{Pilot: proc.Memory{Resident: 1e6}, Agents: proc.Memory{Resident: 2e6}},
		After:    Memory{Pilot: proc.Memory{Resident: 21e6}, Agents: proc.Memory{Resident: 32e6}},
		Endpoint: change(n * time.Microsecond), Workload: change(time.Millisecond), Namespace: change(n * n * time.Nanosecond),
		Restart: Restart{Episode{CPU: CPU{300 * time.Millisecond, time.Second}, Wire: agents.Count{FromPilot: 2e4, ToPilot: 3e5}}, 100 * time.Millisecond},
		Envoy:   &Envoy{Configured: proc.Memory{Resident: 70e6}, Empty: proc.Memory{Resident: 65e6}},
	}
}

// Each figure is in the row that names it, in the column of its world, the sizes in their order.
func TestWorldsAreSideBySide(t *testing.T) {
	w := &Worlds{}
	for _, kind := range []world.Kind{world.Open, world.Closed} {
		of := World{Dense: resultOf(kind, 1000)}
		for _, n := range []int{250, 1000} {
			of.Results = append(of.Results, resultOf(kind, n))
		}
		w.Worlds = append(w.Worlds, of)
	}
	for _, r := range w.Worlds[1].Results {
		r.First.Traffic.Bytes /= 10
		r.Envoy = nil
	}
	w.Worlds[1].Dense.After.Agents.Resident = 12e6
	table := w.Table()
	if want := []string{"measure", "open", "closed"}; !slices.Equal(table.Columns, want) {
		t.Errorf("columns %q, want %q", table.Columns, want)
	}
	rows := map[string][]string{}
	for _, row := range table.Rows {
		if len(row) != 3 || rows[row[0]] != nil {
			t.Errorf("row %q", row)
		}
		rows[row[0]] = row[1:]
	}
	for name, want := range map[string][]string{
		"services":                                                                               {"250 / 1000", "250 / 1000"},
		"proxies; load average before":                                                           {"200; 0.10 / 200; 0.10", "200; 0.10 / 200; 0.10"},
		"Pilot's start to ready: CPU":                                                            {"0.04 / 0.04 s", "0.04 / 0.04 s"},
		"first configuration of all: CPU of Pilot":                                               {"0.25 / 1.00 s", "0.25 / 1.00 s"},
		"first configuration of all: CPU of agents, a pod":                                       {"0.25 / 1.00 ms", "0.25 / 1.00 ms"},
		"first configuration of all: from Pilot":                                                 {"25.00 / 100.00 MB", "25.00 / 100.00 MB"},
		"bytes to one Envoy at first":                                                            {"0.250 / 1.000 MB", "0.025 / 0.100 MB"},
		"Pilot's memory a proxy":                                                                 {"0.100 / 0.100 MB", "0.100 / 0.100 MB"},
		"an agent's memory for the pods of its node":                                             {"3.0 / 3.0 MB", "3.0 / 3.0 MB"},
		"endpoint change: the last proxy concerned, p50; p99":                                    {"0.25; 0.50 / 1.00; 2.00 ms", "0.25; 0.50 / 1.00; 2.00 ms"},
		"endpoint change: of which the API request, p50":                                         {"1.00 / 1.00 ms", "1.00 / 1.00 ms"},
		"endpoint change: CPU of Pilot; of agents together":                                      {"0.25; 1.00 / 1.00; 1.00 ms", "0.25; 1.00 / 1.00; 1.00 ms"},
		"endpoint change: proxies concerned; others told":                                        {"20; 0.5 / 20; 0.5", "20; 0.5 / 20; 0.5"},
		"Pilot killed and started: CPU of Pilot":                                                 {"0.30 / 0.30 s", "0.30 / 0.30 s"},
		"of which until it was ready":                                                            {"0.10 / 0.10 s", "0.10 / 0.10 s"},
		"Pilot killed and started: CPU of agents, a pod":                                         {"5.00 / 5.00 ms", "5.00 / 5.00 ms"},
		"Pilot killed and started: from Pilot; to it":                                            {"0.02; 0.30 / 0.02; 0.30 MB", "0.02; 0.30 / 0.02; 0.30 MB"},
		"a real Envoy's memory above an empty one's":                                             {"5.0 / 5.0 MB", "– / – MB"},
		"slope of log CPU of Pilot (of agents) against log services, endpoint change":            {"1.00 (0.00)", "1.00 (0.00)"},
		"slope of log CPU of Pilot (of agents) against log services, policy change, a namespace": {"2.00 (0.00)", "2.00 (0.00)"},
		"an agent's memory for 20 pods, 1000 services":                                           {"3.00 MB", "1.00 MB"},
	} {
		if !slices.Equal(rows[name], want) {
			t.Errorf("%s: %q, want %q", name, rows[name], want)
		}
	}
}
