package audit

import (
	"net/url"
	"strings"
	"testing"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

func TestWhatPoliciesOnTrialWouldChangeIsFound(t *testing.T) {
	trial := func(v telemetryv1.Verdict) *telemetryv1.Record {
		return &telemetryv1.Record{Event: &telemetryv1.Event{Verdict: telemetryv1.Verdict_VERDICT_ALLOWED, Trial: &telemetryv1.Trial{Verdict: v}}}
	}
	records := []*telemetryv1.Record{trial(telemetryv1.Verdict_VERDICT_DENIED), trial(telemetryv1.Verdict_VERDICT_ALLOWED), {Event: &telemetryv1.Event{Verdict: telemetryv1.Verdict_VERDICT_DENIED}}}
	for query, want := range map[string]int{"": 3, "trial=any": 2, "trial=denied": 1, "trial=allowed": 1, "trial=denied&verdict=denied": 0, "verdict=denied": 1} {
		q, _ := url.ParseQuery(query)
		f, err := ParseFilter(q)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Select(records); len(got) != want {
			t.Errorf("%s: %d records, want %d", query, len(got), want)
		}
	}
	if _, err := ParseFilter(url.Values{"trial": {"refused"}}); err == nil || !strings.Contains(err.Error(), "allowed, denied or any") {
		t.Error(err)
	}
}
