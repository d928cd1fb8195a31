package load

import (
	"fmt"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

// Result is what was measured. Times of changes run from before the request to the API server until the last affected proxy has been sent the
// change.
type Result struct {
	world.Sizes
	Proxies     int     `json:"proxies"`
	LoadAverage string  `json:"loadAverage"` // of the machine, before the proxies connected
	Ready       Start   `json:"ready"`       // Pilot's start with the cluster's objects there
	First       Episode `json:"first"`       // agents without anything and all their proxies, from connecting to having everything
	Before      Memory  `json:"memoryBefore"`
	After       Memory  `json:"memoryAfter"`
	Idle        Rate    `json:"idle"` // with all proxies connected and nothing changing
	Endpoint    Changes `json:"endpointChange"`
	Workload    Changes `json:"workloadPolicyChange"`
	Namespace   Changes `json:"namespacePolicyChange"`
	Tokens      Changes `json:"tokenPolicyChange,omitzero"`  // with Requests
	Questions   Changes `json:"customPolicyChange,omitzero"` // with Requests
	Reconnect   Episode `json:"reconnect"`                   // all proxies to their agents anew, with the versions they have
	Restart     Restart `json:"restart"`                     // all agents to a Pilot that was started in the place of one that was killed; its start is in all figures
	Envoy       *Envoy  `json:"envoy,omitempty"`
}

// CPU is what Pilot has used, and all agents together.
type CPU struct {
	Pilot  time.Duration `json:"pilotCpuNs"`
	Agents time.Duration `json:"agentsCpuNs"`
}

// Memory is what Pilot takes, and all agents together.
type Memory struct {
	Pilot  proc.Memory `json:"pilot"`
	Agents proc.Memory `json:"agents"`
}

// Start is that of a Pilot.
type Start struct {
	Time time.Duration `json:"timeNs"`
	CPU  time.Duration `json:"pilotCpuNs"`
}

// Episode is something that happened once.
type Episode struct {
	Time time.Duration `json:"timeNs"`
	CPU
	Traffic fleet.Traffic `json:"toProxies"`
	Wire    agents.Count  `json:"wire"` // between agents and Pilot
}

// Restart is what follows the end of a Pilot: the start of another, which is in all figures, and all agents' streams to it.
type Restart struct {
	Episode
	Ready time.Duration `json:"readyCpuNs"` // the other's CPU until it was ready; agents may be with it by then
}

// Rate is CPU over a time.
type Rate struct {
	CPU
	Over time.Duration `json:"overNs"`
}

// Changes is a series of changes, one after the other. CPU and bytes are those of one.
type Changes struct {
	Affected int              `json:"affectedProxies"`
	Times    report.Durations `json:"timesNs"`
	Requests report.Durations `json:"requestsNs"` // of which until the API server answered
	CPU
	Bytes     int64 `json:"bytesToProxies"`
	FromPilot int64 `json:"bytesFromPilot"`
	Strays    int   `json:"unaffectedProxiesTold"`
}

// PerProxy is what one proxy takes of Pilot's memory.
func (r *Result) PerProxy() float64 {
	return float64(r.After.Pilot.Resident-r.Before.Pilot.Resident) / float64(r.Proxies)
}

// PerNode is what the configuration of one node's pods takes of its agent's memory.
func (r *Result) PerNode() float64 {
	return float64(r.After.Agents.Resident-r.Before.Agents.Resident) / float64(r.Nodes)
}

// Table implements report.Tabular.
func (r *Result) Table() report.Table {
	t := report.Table{Columns: []string{"what", "result"}}
	t.Row("world", fmt.Sprintf("%s: %d nodes of %d pods with a proxy, %d services of %d endpoints, %d namespaces",
		r.Kind, r.Nodes, r.PodsPerNode, r.Services, r.Endpoints, r.Namespaces))
	t.Row("load average before", r.LoadAverage)
	t.Row("Pilot's start to ready", fmt.Sprintf("%s, %s of CPU", report.Seconds(r.Ready.Time), report.Seconds(r.Ready.CPU)))
	t.Row("first configuration of all", r.First.describe(r.Proxies))
	t.Row("of which to one proxy", report.MB(float64(r.First.Traffic.Bytes)/float64(r.Proxies)))
	for _, name := range fleet.Names {
		share := r.First.Traffic.Types[name]
		t.Row("of which "+name, fmt.Sprintf("%s in %d resources", report.MB(float64(share.Bytes)/float64(r.Proxies)), share.Resources/int64(r.Proxies)))
	}
	t.Row("Pilot's memory a proxy", fmt.Sprintf("%s (resident %s before, %s after, peak %s)", report.MB(r.PerProxy()),
		report.MB(float64(r.Before.Pilot.Resident)), report.MB(float64(r.After.Pilot.Resident)), report.MB(float64(r.After.Pilot.Peak))))
	t.Row(fmt.Sprintf("an agent's memory for %d pods", r.PodsPerNode), fmt.Sprintf("%s (resident, all in one process, %s before, %s after, peak %s)",
		report.MB(r.PerNode()), report.MB(float64(r.Before.Agents.Resident)), report.MB(float64(r.After.Agents.Resident)), report.MB(float64(r.After.Agents.Peak))))
	t.Row("idle", fmt.Sprintf("%.1f CPU ms a second; agents %.1f", 1000*r.Idle.Pilot.Seconds()/r.Idle.Over.Seconds(),
		1000*r.Idle.Agents.Seconds()/r.Idle.Over.Seconds()))
	for _, c := range r.series() {
		t.Row(fmt.Sprintf("%s (%d × %d proxies)", c.name, len(c.Times), c.Affected), c.describe())
	}
	t.Row("all proxies connect anew", r.Reconnect.describe(r.Proxies))
	t.Row("Pilot killed and started anew", r.Restart.describe(r.Proxies)+fmt.Sprintf("; %s of Pilot's CPU until it was ready", report.Seconds(r.Restart.Ready)))
	if r.Envoy != nil {
		t.Row("a real Envoy's memory above an empty one's", r.Envoy.describe())
	}
	return t
}

type series struct {
	name string
	Changes
}

func (r *Result) series() []series {
	out := []series{{"endpoint change", r.Endpoint}, {"policy change, a workload", r.Workload}, {"policy change, a namespace", r.Namespace}}
	if r.Requests {
		out = append(out, series{"change of a RequestAuthentication, a workload", r.Tokens}, series{"change of a CUSTOM policy, a workload", r.Questions})
	}
	return out
}

func (e Episode) describe(proxies int) string {
	return fmt.Sprintf("%s of CPU, agents %s a pod; %s; %s from Pilot, %s to it; %s to proxies in %d resources", report.Seconds(e.Pilot),
		report.Millis(e.Agents/time.Duration(proxies)), report.Seconds(e.Time), report.MB(float64(e.Wire.FromPilot)), report.MB(float64(e.Wire.ToPilot)),
		report.MB(float64(e.Traffic.Bytes)), e.Traffic.Resources)
}

func (c Changes) describe() string {
	return fmt.Sprintf("p50 %s, p99 %s (API request p50 %s), %s of CPU, agents %s together, %.1f kB from Pilot, %.1f kB to proxies, %d unaffected told",
		report.Millis(c.Times.Percentile(50)), report.Millis(c.Times.Percentile(99)), report.Millis(c.Requests.Percentile(50)), micros(c.Pilot),
		micros(c.Agents), float64(c.FromPilot)/1e3, float64(c.Bytes)/1e3, c.Strays)
}

// micros prints a duration in milliseconds, with two decimals.
func micros(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}
