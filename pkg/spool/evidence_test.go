package spool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Mixer takes no sequence that does not follow from the last, so that nobody leaves out events without a word.
func TestWhatIsMissingIsSaidInItsPlace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	add(t, s, 0, 10)
	readAll(t, s)
	files, _ := filepath.Glob(dir + "/*.seg")
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, 1<<30)
	add(t, again, 10, 12)
	got := readAll(t, again)
	last, said := uint64(0), uint64(0)
	for _, e := range got {
		if e.GetSequence() != last+1 && (e.GetKind() != telemetryv1.Kind_KIND_TRAIL || e.GetLost() != e.GetSequence()-last) {
			t.Fatalf("%d follows %d: %v", e.GetSequence(), last, e)
		}
		last, said = e.GetSequence(), said+e.GetLost()
	}
	if said == 0 || got[len(got)-1].GetPath() != "/11" {
		t.Fatalf("%d missing, last %v", said, got[len(got)-1])
	}
}

// Strangers choose how long a denied request's path is. Mixer takes messages of up to 4 MiB, and one that is longer would be
// sent again for ever.
func TestABatchIsNeverTooLongToBeTaken(t *testing.T) {
	s := open(t, t.TempDir(), 1<<30)
	const all = 2 * batchEvents
	for range all {
		if !s.Append(&telemetryv1.Event{Path: "/" + strings.Repeat("p", 4<<10), Authority: strings.Repeat("a", 4<<10)}) {
			t.Fatal("dropped")
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	r, n := newReader(s), 0
	defer r.close()
	for n < all {
		events, err := r.read(batchEvents)
		if err != nil || len(events) == 0 {
			t.Fatalf("%d events, %v", n, err)
		}
		if size := proto.Size(&telemetryv1.EventBatch{Spool: s.ID(), Events: events}); size > 2<<20 {
			t.Fatalf("a batch of %d bytes", size)
		}
		n += len(events)
	}
}

func TestACopiedDiskIsNotTheNodesOwnSpool(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	add(t, s, 0, 5)
	id := s.ID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if same := open(t, dir, 1<<30); same.ID() != id || len(readAll(t, same)) != 5 {
		t.Fatal("its own spool is not the node's")
	}
	other, err := Open(dir, 1<<30, &telemetryv1.Workload{Node: "node2"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	add(t, other, 7, 8)
	got := readAll(t, other)
	if other.ID() == id || len(got) != 2 || got[0].GetLost() != 5 || got[0].GetObserver().GetNode() != "node2" || got[1].GetPath() != "/7" {
		t.Fatalf("%s after %s: %v", other.ID(), id, got)
	}
}
