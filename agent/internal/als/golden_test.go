package als

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
)

var update = flag.Bool("update", false, "write the events that are made of a proxy's log")

// TestEventsOfWhatAProxyLogs compares the events that are made of what a real Envoy with Pilot's configuration logs: a test of
// pilot/internal/translate writes that, and compares.
func TestEventsOfWhatAProxyLogs(t *testing.T) {
	eventsOf(t, "testdata/entries.jsonl", "testdata/events.jsonl")
	eventsOf(t, "testdata/trial-entries.jsonl", "testdata/trial-events.jsonl")
}

func eventsOf(t *testing.T, entries, file string) {
	t.Helper()
	text, err := os.ReadFile(entries)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range bytes.Lines(text) {
		r := record{}
		if err := json.Unmarshal(line, &r.text); err != nil {
			t.Fatal(err)
		}
		e := r.event()
		e.Time = nil
		out, err := protojson.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, out); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, compact.String()+"\n")
	}
	slices.Sort(lines)
	got := strings.Join(lines, "")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // test data
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("events of %s differ; now\n%s", file, got)
	}
}
