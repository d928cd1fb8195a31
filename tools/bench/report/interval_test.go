package report

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestBootstrapHoldsTheMedian(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	const worlds, rounds = 400, 30
	held, same := 0, 0
	for range worlds {
		dearer, alike := make([]float64, rounds), make([]float64, rounds)
		for i := range rounds {
			dearer[i] = 1.1 * (1 + random.NormFloat64()/20)
			alike[i] = 1 + random.NormFloat64()/20
		}
		if i := Bootstrap(dearer); i.Holds(1.1) {
			held++
			if i.Holds(1) {
				t.Errorf("a difference of 10 %% with a noise of 5 %% is not seen in %d rounds: %+v", rounds, i)
			}
		}
		if strings.HasPrefix(Bootstrap(alike).Percent(), "none seen") {
			same++
		}
	}
	if least := worlds * 90 / 100; held < least || same < least {
		t.Errorf("of %d intervals %d hold the median, and %d take no difference for none; at least %d should", worlds, held, same, least)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		want   float64
		sample []float64
	}{{2, []float64{3, 1, 2}}, {2.5, []float64{4, 1, 3, 2}}, {7, []float64{7}}} {
		if got := Median(c.sample); got != c.want {
			t.Errorf("median of %v: got %v, want %v", c.sample, got, c.want)
		}
	}
}
