package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

func signer(t *testing.T) note.Signer {
	t.Helper()
	private, _, err := note.GenerateKey(rand.Reader, Origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func events(from, to uint64) []*telemetryv1.Event {
	var out []*telemetryv1.Event
	for i := from; i <= to; i++ {
		out = append(out, &telemetryv1.Event{Sequence: i, Path: "/accounts/42", Verdict: telemetryv1.Verdict_VERDICT_ALLOWED})
	}
	return out
}

func TestRedeliveredEventsAreInTheTrailOnceAlsoAfterARestart(t *testing.T) {
	dir, key := t.TempDir(), signer(t)
	open := func() (*Trail, context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		trail, err := Open(ctx, dir, key)
		if err != nil {
			t.Fatal(err)
		}
		return trail, cancel
	}
	trail, cancel := open()
	for _, batch := range [][]*telemetryv1.Event{events(1, 300), events(200, 400), events(1, 400)} {
		if got, err := trail.Append(t.Context(), "agent on n1", "a", batch); err != nil || got < 300 {
			t.Fatalf("acknowledged %d, %v", got, err)
		}
	}
	if _, err := trail.Append(t.Context(), "agent on n1", "b", events(1, 1)); err != nil {
		t.Fatal(err)
	}
	if trail.Size() != 401 {
		t.Fatalf("trail has %d events, want 401", trail.Size())
	}
	ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	if err := trail.Close(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()

	trail, cancel = open()
	defer cancel()
	got, err := trail.Append(t.Context(), "agent on n1", "a", events(350, 410))
	if err != nil || got != 410 {
		t.Fatalf("acknowledged %d, %v", got, err)
	}
	records, position, _ := trail.Recent(0)
	if len(records) != 411 || position != 411 {
		t.Fatalf("%d records, position %d, want 411", len(records), position)
	}
	seen := map[uint64]bool{}
	for _, r := range records {
		if r.GetSpool() == "a" {
			if seen[r.GetEvent().GetSequence()] {
				t.Fatalf("sequence %d is there twice", r.GetEvent().GetSequence())
			}
			seen[r.GetEvent().GetSequence()] = true
		}
	}
}

func TestFollowersAreWoken(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	trail, err := Open(ctx, t.TempDir(), signer(t))
	if err != nil {
		t.Fatal(err)
	}
	_, position, changed := trail.Recent(0)
	if _, err := trail.Append(ctx, "agent on n1", "a", events(1, 2)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Fatal("not woken")
	}
	if records, _, _ := trail.Recent(position); len(records) != 2 {
		t.Fatalf("%d new records, want 2", len(records))
	}
}

// A compromised agent may leave out, invent and squat only what is its own, and not without a word.
func TestASpoolIsItsSendersAlsoAfterARestart(t *testing.T) {
	dir, key := t.TempDir(), signer(t)
	refused := func(what string, err error) {
		t.Helper()
		if refusal := Refusal(""); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		trail, err := Open(ctx, dir, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trail.Append(ctx, "agent on n1", "a", events(1, 5)); err != nil {
			t.Fatal(err)
		}
		_, err = trail.Append(ctx, "agent on n2", "a", events(6, 7))
		refused("another's spool", err)
		_, err = trail.Append(ctx, "citadel", "a", events(6, 7))
		refused("another's spool, by one without a node", err)
		_, err = trail.Append(ctx, "agent on n1", "a", events(1<<63, 1<<63))
		refused("a jump", err)
		_, err = trail.Append(ctx, "agent on n1", "a", []*telemetryv1.Event{events(6, 6)[0], events(8, 8)[0]})
		refused("a jump within a batch", err)
		_, err = trail.Append(ctx, "agent on n1", "a", []*telemetryv1.Event{{Sequence: 9, Kind: telemetryv1.Kind_KIND_TRAIL, Lost: 1}})
		refused("a jump that is longer than it says", err)
		_, err = trail.Append(ctx, "agent on n1", "a", []*telemetryv1.Event{{Sequence: 1 << 40, Kind: telemetryv1.Kind_KIND_TRAIL, Lost: 1 << 40}})
		refused("a jump that is longer than a spool can be", err)
		if trail.Size() != 5 {
			t.Fatalf("%d events", trail.Size())
		}
		if err := trail.Close(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	trail, err := Open(ctx, dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := trail.Append(ctx, "agent on n1", "a", []*telemetryv1.Event{{Sequence: 8, Kind: telemetryv1.Kind_KIND_TRAIL, Lost: 3}, {Sequence: 9}}); err != nil || got != 9 {
		t.Fatalf("a jump that says what is missing: %d, %v", got, err)
	}
}

// The log's entries have a length of 16 bits; one that is longer would make the trail unreadable, and Mixer would not start.
func TestAnEventThatIsTooLongDoesNotSpoilTheTrail(t *testing.T) {
	dir, key := t.TempDir(), signer(t)
	ctx, cancel := context.WithCancel(t.Context())
	trail, err := Open(ctx, dir, key)
	if err != nil {
		t.Fatal(err)
	}
	// 40 KB on the wire, and six times as much as JSON.
	long := &telemetryv1.Event{Sequence: 2, Path: strings.Repeat("\x1b", 40<<10)}
	if _, err := trail.Append(ctx, "s", "a", append(events(1, 1), long)); err == nil {
		t.Error("taken")
	}
	if _, err := trail.Append(ctx, "s", "a", events(1, 3)); err != nil {
		t.Fatal(err)
	}
	if err := trail.Close(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	again, err := Open(t.Context(), dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Size() != 3 {
		t.Fatalf("%d events", again.Size())
	}
}

func TestRecordsAreReadByPeopleToo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	trail, err := Open(ctx, t.TempDir(), signer(t))
	if err != nil {
		t.Fatal(err)
	}
	const hostile = "spiffe://a/ns/b/sa/c\r\nforged\x1b[2K\u202egnp\u009b31m"
	if _, err := trail.Append(ctx, "s", "a", []*telemetryv1.Event{{Sequence: 1, ClaimedSource: hostile}}); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	trail.ServeHTTP(w, httptest.NewRequest("GET", "/v1/audit", nil))
	line := strings.TrimSuffix(w.Body.String(), "\n")
	if !printable.Is(line) {
		t.Errorf("%q", line)
	}
	record := &telemetryv1.Record{}
	if err := protojson.Unmarshal([]byte(line), record); err != nil || record.GetEvent().GetClaimedSource() != hostile {
		t.Errorf("%v, %v", record, err)
	}
	if raw, err := client.GetEntryBundle(ctx, trail.reader.ReadEntryBundle, 0, 1); err != nil || !printable.Is(string(raw.Entries[0])) {
		t.Errorf("%q, %v", raw.Entries, err)
	}
}

// A Mixer that was rolled back finds records of a newer one in its trail, with fields that it does not know.
func TestTrailOfANewerMixerIsRead(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir, key := t.TempDir(), signer(t)
	trail, err := Open(ctx, dir, key)
	if err != nil {
		t.Fatal(err)
	}
	index, err := trail.appender.Add(ctx, tessera.NewEntry([]byte(`{"spool":"a","invented":{"later":1},"event":{"sequence":"7","alsoInvented":"x"}}`)))()
	if err != nil {
		t.Fatal(err)
	}
	if err := trail.Close(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := Open(ctx, dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Size() != index.Index+1 || again.spools["a"].last != 7 {
		t.Fatalf("%d records, spools %+v", again.Size(), again.spools)
	}
}
