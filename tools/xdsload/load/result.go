package load

import (
	"fmt"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

// Result is what was measured. CPU is Pilot's; times of changes run from before the request to the API server until the
// last affected proxy has been sent the change.
type Result struct {
	world.Sizes
	LoadAverage string      `json:"loadAverage"` // of the machine, before the proxies connected
	Ready       Episode     `json:"ready"`       // Pilot's start with the cluster's objects there
	First       Episode     `json:"first"`       // all proxies, from connecting to having everything
	Before      proc.Memory `json:"memoryBefore"`
	After       proc.Memory `json:"memoryAfter"`
	Idle        Rate        `json:"idle"` // with all proxies connected and nothing changing
	Endpoint    Changes     `json:"endpointChange"`
	Workload    Changes     `json:"workloadPolicyChange"`
	Namespace   Changes     `json:"namespacePolicyChange"`
	Reconnect   Episode     `json:"reconnect"` // all proxies anew, with the versions they have
	Restart     Episode     `json:"restart"`   // the same with a Pilot that was started anew; its start is in the CPU, not in the time
}

// Episode is something that happened once.
type Episode struct {
	Time    time.Duration `json:"timeNs"`
	CPU     time.Duration `json:"cpuNs"`
	Traffic fleet.Traffic `json:"traffic"`
}

// Rate is CPU over a time.
type Rate struct {
	CPU  time.Duration `json:"cpuNs"`
	Over time.Duration `json:"overNs"`
}

// Changes is a series of changes, one after the other.
type Changes struct {
	Affected int              `json:"affectedProxies"`
	Times    report.Durations `json:"timesNs"`
	Requests report.Durations `json:"requestsNs"` // of which until the API server answered
	CPU      time.Duration    `json:"cpuPerChangeNs"`
	Bytes    int64            `json:"bytesPerChange"`
	Strays   int              `json:"unaffectedProxiesTold"`
}

// PerProxy is what one proxy takes of Pilot's memory.
func (r *Result) PerProxy() float64 {
	return float64(r.After.Resident-r.Before.Resident) / float64(r.Proxies)
}

// Table implements report.Tabular.
func (r *Result) Table() report.Table {
	t := report.Table{Columns: []string{"what", "result"}}
	t.Row("size", fmt.Sprintf("%d proxies, %d services of %d endpoints, %d namespaces", r.Proxies, r.Services, r.Endpoints, r.Namespaces))
	t.Row("load average before", r.LoadAverage)
	t.Row("Pilot's start to ready", fmt.Sprintf("%s, %s of CPU", report.Seconds(r.Ready.Time), report.Seconds(r.Ready.CPU)))
	t.Row("first configuration of all", fmt.Sprintf("%s of CPU, %s", report.Seconds(r.First.CPU), describe(r.First)))
	for _, name := range fleet.Names {
		share := r.First.Traffic.Types[name]
		t.Row("of which "+name, fmt.Sprintf("%s in %d resources", report.MB(float64(share.Bytes)), share.Resources))
	}
	t.Row("memory a proxy", fmt.Sprintf("%s (resident %s before, %s after, peak %s)", report.MB(r.PerProxy()),
		report.MB(float64(r.Before.Resident)), report.MB(float64(r.After.Resident)), report.MB(float64(r.After.Peak))))
	t.Row("idle", fmt.Sprintf("%.1f CPU ms a second", 1000*r.Idle.CPU.Seconds()/r.Idle.Over.Seconds()))
	for _, c := range []struct {
		name string
		Changes
	}{{"endpoint change", r.Endpoint}, {"policy change, a workload", r.Workload}, {"policy change, a namespace", r.Namespace}} {
		t.Row(fmt.Sprintf("%s (%d × %d proxies)", c.name, len(c.Times), c.Affected), c.describe())
	}
	t.Row("all reconnect", fmt.Sprintf("%s of CPU, %s", report.Seconds(r.Reconnect.CPU), describe(r.Reconnect)))
	t.Row("all reconnect to a new Pilot", fmt.Sprintf("%s of CPU with its start, %s", report.Seconds(r.Restart.CPU), describe(r.Restart)))
	return t
}

func describe(e Episode) string {
	return fmt.Sprintf("%s, %s in %d resources", report.Seconds(e.Time), report.MB(float64(e.Traffic.Bytes)), e.Traffic.Resources)
}

func (c Changes) describe() string {
	return fmt.Sprintf("p50 %s, p99 %s (API request p50 %s), %s of CPU, %.1f kB, %d unaffected told", report.Millis(c.Times.Percentile(50)),
		report.Millis(c.Times.Percentile(99)), report.Millis(c.Requests.Percentile(50)), report.Millis(c.CPU), float64(c.Bytes)/1e3, c.Strays)
}
