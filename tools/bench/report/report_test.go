package report

import (
	"testing"
	"time"
)

func TestPercentileIsNearestRank(t *testing.T) {
	var d Durations
	for i := range 100 {
		d = append(d, time.Duration(100-i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 1: 1, 50: 50, 99: 99, 100: 100} {
		if got := d.Percentile(p); got != want {
			t.Errorf("percentile %g = %d, want %d", p, got, want)
		}
	}
	if got := (Durations{}).Percentile(50); got != 0 {
		t.Errorf("percentile of nothing = %d", got)
	}
}
