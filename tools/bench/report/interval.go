package report

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Interval is a sample's median, and between which bounds it may be.
type Interval struct {
	Low    float64 `json:"low"`
	Median float64 `json:"median"`
	High   float64 `json:"high"`
}

const (
	resamples = 4000
	outside   = 0.025 // of the resamples' medians on each side: an interval holds the median 95 times in 100
)

// Bootstrap resamples a sample that is not empty, with replacement, to find how far its median may be from that of what it was drawn from
// (the percentile method; Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). The same sample has the same interval.
func Bootstrap(sample []float64) Interval {
	random := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, resamples)
	drawn := make([]float64, len(sample))
	for i := range medians {
		for j := range drawn {
			drawn[j] = sample[random.IntN(len(sample))]
		}
		slices.Sort(drawn)
		medians[i] = middle(drawn)
	}
	slices.Sort(medians)
	return Interval{medians[int(outside*resamples)], Median(sample), medians[resamples-1-int(outside*resamples)]}
}

// Median of a sample that is not empty.
func Median(sample []float64) float64 { return middle(slices.Sorted(slices.Values(sample))) }

func middle(sorted []float64) float64 {
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// Holds says whether a value may be the median.
func (i Interval) Holds(value float64) bool { return i.Low <= value && value <= i.High }

// Percent prints an interval of ratios as what they are more than one, and no difference where there may be none.
func (i Interval) Percent() string {
	bounds := fmt.Sprintf("%+.1f to %+.1f %%", 100*(i.Low-1), 100*(i.High-1))
	if i.Holds(1) {
		return "none seen (" + bounds + ")"
	}
	return fmt.Sprintf("%+.1f %% (%s)", 100*(i.Median-1), bounds)
}

// Millis prints an interval of differences in nanoseconds.
func (i Interval) Millis() string { return i.difference(1e6, 2, "ms") }

// Micros prints an interval of differences in nanoseconds.
func (i Interval) Micros() string { return i.difference(1e3, 1, "µs") }

func (i Interval) difference(unit float64, digits int, name string) string {
	bounds := fmt.Sprintf("%+.*f to %+.*f %s", digits, i.Low/unit, digits, i.High/unit, name)
	if i.Holds(0) {
		return "none seen (" + bounds + ")"
	}
	return fmt.Sprintf("%+.*f %s (%s)", digits, i.Median/unit, name, bounds)
}
