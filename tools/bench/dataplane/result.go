package dataplane

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// Result is what was measured.
type Result struct {
	Duration time.Duration `json:"durationNs"`
	Patterns []Pattern     `json:"patterns"`
}

// Pattern is all variants under one pattern of traffic.
type Pattern struct {
	Traffic  string    `json:"traffic"`
	Variants []Variant `json:"variants"`
}

// Variant is one configuration of the two Envoys.
type Variant struct {
	Name   string        `json:"name"`
	Rounds []Round       `json:"rounds"`
	Memory []proc.Memory `json:"memory"`         // of the server's Envoy, of the client's
	Base   string        `json:"base,omitempty"` // the variant to which it adds one thing, if it does
	// Profile is, if it was asked for, how long the Envoys were seen in each place, in all rounds.
	Profile map[string]time.Duration `json:"profileNs,omitempty"`
}

// Round is one variant under load once.
type Round struct {
	Load traffic.Load    `json:"load"`
	CPU  []time.Duration `json:"cpuNs"`     // a unit of the traffic's, of the server's Envoy, of the client's
	User time.Duration   `json:"userCPUNs"` // of both, outside the kernel
}

func (r Round) cpu() (sum float64) {
	for _, c := range r.CPU {
		sum += float64(c)
	}
	return sum
}

func (r Round) user() float64 { return float64(r.User) }
func (r Round) rate() float64 { return float64(r.Load.Units) / r.Load.Elapsed.Seconds() }
func (r Round) p50() float64  { return float64(r.Load.P50) }
func (r Round) p90() float64  { return float64(r.Load.P90) }
func (r Round) p99() float64  { return float64(r.Load.P99) }

func each(rounds []Round, of func(Round) float64) []float64 {
	out := make([]float64, len(rounds))
	for i, r := range rounds {
		out[i] = of(r)
	}
	return out
}

func (v Variant) median(of func(Round) float64) float64 { return report.Median(each(v.Rounds, of)) }

// against compares two variants round by round, as what noise there is lasts longer than a round.
func (v Variant) against(other Variant, compare func(a, b float64) float64, of func(Round) float64) report.Interval {
	out := each(v.Rounds, of)
	for i, b := range each(other.Rounds, of) {
		out[i] = compare(out[i], b)
	}
	return report.Bootstrap(out)
}

func ratio(a, b float64) float64      { return a / b }
func difference(a, b float64) float64 { return a - b }

func (p Pattern) variant(name string) Variant {
	return p.Variants[slices.IndexFunc(p.Variants, func(v Variant) bool { return v.Name == name })]
}

// Table implements report.Tabular. What is compared with itself is left out.
func (r *Result) Table() report.Table {
	t := report.Table{Columns: []string{"traffic", "configuration", "Envoys a unit: server's, client's", "against " + redirected, "of it outside the kernel", "against " + whole, "what is added, against the same without it",
		"units a second", "against " + redirected, "p50, p90, p99", "p99 against " + redirected, "p50 more than " + plain, "p99 more than " + plain, "memory: server, client"}}
	sampled := slices.ContainsFunc(r.Patterns, func(p Pattern) bool {
		return slices.ContainsFunc(p.Variants, func(v Variant) bool { return v.Profile != nil })
	})
	if sampled {
		t.Columns = append(t.Columns, "both Envoys a unit, in "+strings.Join(places, ", "))
	}
	for _, p := range r.Patterns {
		minimal, bulwark, without := p.variant(redirected), p.variant(whole), p.variant(plain)
		for _, v := range p.Variants {
			compared := func(with Variant, say func() string) string {
				if v.Name == with.Name {
					return ""
				}
				return say()
			}
			used, cost, user, more, adds, memory := "", "", "", "", "", ""
			if len(v.Memory) > 0 {
				micros := func(i int) float64 { return v.median(func(r Round) float64 { return float64(r.CPU[i]) }) / 1e3 }
				used = fmt.Sprintf("%.1f, %.1f µs", micros(0), micros(1))
				cost = compared(minimal, func() string { return v.against(minimal, ratio, Round.cpu).Percent() })
				user = compared(minimal, func() string { return v.against(minimal, ratio, Round.user).Percent() })
				more = compared(bulwark, func() string { return v.against(bulwark, ratio, Round.cpu).Percent() })
				if v.Base != "" {
					base := p.variant(v.Base)
					adds = v.against(base, ratio, Round.cpu).Percent() + ", " + v.against(base, difference, Round.cpu).Micros()
				}
				memory = report.MB(float64(v.Memory[0].Resident)) + ", " + report.MB(float64(v.Memory[1].Resident))
			}
			row := []string{p.Traffic, v.Name, used, cost, user, more, adds, fmt.Sprintf("%.0f", v.median(Round.rate)),
				compared(minimal, func() string { return v.against(minimal, ratio, Round.rate).Percent() }),
				fmt.Sprintf("%.2f, %.2f, %.2f ms", v.median(Round.p50)/1e6, v.median(Round.p90)/1e6, v.median(Round.p99)/1e6),
				compared(minimal, func() string { return v.against(minimal, difference, Round.p99).Millis() }),
				compared(without, func() string { return v.against(without, difference, Round.p50).Millis() }),
				compared(without, func() string { return v.against(without, difference, Round.p99).Millis() }), memory}
			if sampled {
				row = append(row, v.spent())
			}
			t.Row(row...)
		}
	}
	return t
}

// spent is where a unit's time goes, of both Envoys, as far as samples tell.
func (v Variant) spent() string {
	units := 0
	for _, r := range v.Rounds {
		units += r.Load.Units
	}
	var out []string
	for _, place := range places {
		out = append(out, fmt.Sprintf("%.1f", float64(v.Profile[place].Microseconds())/float64(max(units, 1))))
	}
	return strings.Join(out, ", ") + " µs"
}
