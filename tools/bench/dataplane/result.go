package dataplane

import (
	"fmt"
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// Result is what was measured.
type Result struct {
	Connections int           `json:"connections"`
	Duration    time.Duration `json:"durationNs"`
	Variants    []Variant     `json:"variants"`
}

// Variant is one configuration of the two Envoys.
type Variant struct {
	Name         string      `json:"name"`
	Rounds       []Round     `json:"rounds"`
	ClientMemory proc.Memory `json:"clientMemory"`
	ServerMemory proc.Memory `json:"serverMemory"`
}

// Round is one variant under load once; CPU is that of a request.
type Round struct {
	Load   traffic.Load  `json:"load"`
	Client time.Duration `json:"clientCPUNs"`
	Server time.Duration `json:"serverCPUNs"`
	User   time.Duration `json:"userCPUNs"` // of both, outside the kernel
}

func (r Round) cpu() float64  { return float64(r.Client + r.Server) }
func (r Round) user() float64 { return float64(r.User) }
func (r Round) rate() float64 { return float64(r.Load.Requests) / r.Load.Elapsed.Seconds() }

func median[T float64 | time.Duration](rounds []Round, of func(Round) T) T {
	var all []T
	for _, r := range rounds {
		all = append(all, of(r))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Ratio is the median, over the rounds, of what a request costs compared with the first variant in the same round.
func (r *Result) Ratio(v Variant, of func(Round) float64) float64 {
	var all []float64
	for i, round := range v.Rounds {
		all = append(all, of(round)/of(r.Variants[0].Rounds[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Least is the same of the cheapest round of each variant: what others take of the machine only adds to a cost.
func (r *Result) Least(v Variant, of func(Round) float64) float64 {
	cheapest := func(rounds []Round) float64 {
		least := of(rounds[0])
		for _, round := range rounds {
			least = min(least, of(round))
		}
		return least
	}
	return cheapest(v.Rounds) / cheapest(r.Variants[0].Rounds)
}

var titles = map[string]string{
	"minimal": "minimal mTLS, by hand", "redirected": "minimal mTLS, with redirection", "silent": "Bulwark without telemetry", "full": "Bulwark: metrics, audit of denials",
}

// Table implements report.Tabular.
func (r *Result) Table() report.Table {
	t := report.Table{Columns: []string{"configuration", "client's Envoy a request", "server's Envoy a request", "both, against minimal", "cheapest rounds", "outside the kernel", "requests a second", "p50", "p90", "p99", "memory client, server"}}
	percent := func(ratio float64) string { return fmt.Sprintf("%+.1f %%", 100*(ratio-1)) }
	micros := func(d time.Duration) string { return fmt.Sprintf("%.1f µs", float64(d)/1e3) }
	for _, v := range r.Variants {
		t.Row(titles[v.Name],
			micros(median(v.Rounds, func(r Round) time.Duration { return r.Client })),
			micros(median(v.Rounds, func(r Round) time.Duration { return r.Server })),
			percent(r.Ratio(v, Round.cpu)), percent(r.Least(v, Round.cpu)), percent(r.Ratio(v, Round.user)),
			fmt.Sprintf("%.0f", median(v.Rounds, Round.rate)),
			report.Millis(median(v.Rounds, func(r Round) time.Duration { return r.Load.P50 })),
			report.Millis(median(v.Rounds, func(r Round) time.Duration { return r.Load.P90 })),
			report.Millis(median(v.Rounds, func(r Round) time.Duration { return r.Load.P99 })),
			report.MB(float64(v.ClientMemory.Resident))+", "+report.MB(float64(v.ServerMemory.Resident)))
	}
	return t
}
