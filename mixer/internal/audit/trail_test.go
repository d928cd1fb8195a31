package audit

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
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
		if got, err := trail.Append(t.Context(), "a", batch); err != nil || got < 300 {
			t.Fatalf("acknowledged %d, %v", got, err)
		}
	}
	if _, err := trail.Append(t.Context(), "b", events(1, 1)); err != nil {
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
	got, err := trail.Append(t.Context(), "a", events(350, 410))
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
	if _, err := trail.Append(ctx, "a", events(1, 2)); err != nil {
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
