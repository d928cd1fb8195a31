// Package audit keeps the audit trail: an append-only transparency log (C2SP tlog-tiles, signed checkpoints) on disk.
// An event is acknowledged only when it is in the log, and is in it once however often it is delivered.
package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

// Origin names the log in its checkpoints.
const Origin = "bulwark.dev/audit"

const (
	batchSize     = 256
	batchAge      = 20 * time.Millisecond // an event waits at most this long for others before it is written
	bundleEntries = 256                   // entries of a full bundle, fixed by tlog-tiles
	recentKept    = 20000                 // records held in memory for tail and queries
	// An entry's length has 16 bits in a bundle. One that is longer would be written with another length, and the trail could
	// not be read any more.
	maxEntry = 1<<16 - 1
	// maxMissing is how many numbers an event may say are missing: more than a spool ever holds and skips.
	maxMissing = 1 << 24
	maxSpools  = 1000 // of one sender
)

// OwnSpool is the spool of what Mixer itself has to say. It is no name that a sender's spool can have.
const OwnSpool = "mixer"

// Refusal is why events of a sender are not taken. The text is for people, and quotes nothing of the events.
type Refusal string

// Error implements error.
func (r Refusal) Error() string { return string(r) }

// Trail is safe for concurrent use.
type Trail struct {
	appender *tessera.Appender
	reader   tessera.LogReader
	shutdown func(context.Context) error

	appending sync.Mutex // one batch at a time, so that a spool's sequence only rises

	mu       sync.Mutex
	spools   map[string]spool
	senders  map[string]int // sender → number of its spools
	recent   []*telemetryv1.Record
	changed  chan struct{} // closed and replaced at each append
	appended uint64
}

// spool is what the log has of one.
type spool struct {
	last   uint64 // highest sequence in the log
	sender string // whose it is; empty if its records were written before they named their sender
	node   string // where the first record was observed
}

// of reports whether the spool is this sender's.
func (s spool) of(sender string) bool {
	if s.sender != "" {
		return s.sender == sender
	}
	_, node, _ := strings.Cut(sender, " on ")
	return node == "" || node == s.node
}

// Open opens the trail in a directory, or makes it, and reads what is in it. Signer signs its checkpoints.
func Open(ctx context.Context, dir string, signer note.Signer) (*Trail, error) {
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return nil, fmt.Errorf("opening the audit trail in %s: %w", dir, err)
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(batchSize, batchAge).WithCheckpointInterval(time.Second).
		WithCheckpointRepublishInterval(time.Minute)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return nil, fmt.Errorf("opening the audit trail in %s: %w", dir, err)
	}
	t := &Trail{appender: appender, reader: reader, shutdown: shutdown, spools: map[string]spool{}, senders: map[string]int{}, changed: make(chan struct{})}
	if err := t.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the audit trail in %s: %w", dir, err), shutdown(ctx))
	}
	return t, nil
}

// Close waits until what was accepted is integrated.
func (t *Trail) Close(ctx context.Context) error { return t.shutdown(ctx) }

// load reads the whole log: the high-water mark of each spool must be known before anything is accepted.
func (t *Trail) load(ctx context.Context) error {
	size, err := t.reader.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	for bundle := uint64(0); bundle*bundleEntries < size; bundle++ {
		entries, err := client.GetEntryBundle(ctx, t.reader.ReadEntryBundle, bundle, size)
		if err != nil {
			return err
		}
		for i, raw := range entries.Entries {
			record := &telemetryv1.Record{}
			// A newer Mixer, before it was rolled back, may have written fields that this one does not know.
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, record); err != nil {
				return fmt.Errorf("entry %d: %w", bundle*bundleEntries+uint64(i), err)
			}
			record.Index = bundle*bundleEntries + uint64(i)
			t.keep(record)
		}
	}
	return nil
}

// keep notes a record that is in the log. The caller holds mu, or nobody else has t yet.
func (t *Trail) keep(r *telemetryv1.Record) {
	known, ok := t.spools[r.GetSpool()]
	if !ok {
		known.node = r.GetEvent().GetObserver().GetNode()
	}
	if known.sender == "" && r.GetSender() != "" {
		known.sender = r.GetSender()
		t.senders[known.sender]++
	}
	known.last = max(known.last, r.GetEvent().GetSequence())
	t.spools[r.GetSpool()] = known
	t.recent = append(t.recent, r)
	if len(t.recent) > 2*recentKept {
		t.recent = append([]*telemetryv1.Record(nil), t.recent[len(t.recent)-recentKept:]...)
	}
	t.appended++
}

// Append adds events of a sender's spool, each of whose sequences follows from the last or says how many are missing, and
// returns when they are on disk; those that the trail has already are dropped. It returns the highest sequence that the trail
// now has of the spool. A spool belongs to the sender who was the first to use it. What breaks these rules is a Refusal.
func (t *Trail) Append(ctx context.Context, sender, name string, events []*telemetryv1.Event) (uint64, error) {
	t.appending.Lock()
	defer t.appending.Unlock()
	t.mu.Lock()
	known, exists := t.spools[name]
	owned := t.senders[sender]
	t.mu.Unlock()
	switch {
	case exists && !known.of(sender):
		return 0, Refusal("the spool is another sender's")
	case !exists && owned >= maxSpools:
		return 0, Refusal(fmt.Sprintf("the sender has %d spools already", maxSpools))
	}
	last := known.last
	var fresh []*telemetryv1.Record
	for _, e := range events {
		if exists && e.GetSequence() <= last {
			continue
		}
		// Of a spool that the trail has nothing of, it may be that the trail is the younger one.
		if len(fresh) > 0 || exists {
			if missing := e.GetSequence() - last - 1; missing > 0 && !explained(e, missing) {
				return 0, Refusal(fmt.Sprintf("event %d follows %d, and nothing says what became of those between", e.GetSequence(), last))
			}
		}
		exists, last = true, e.GetSequence()
		fresh = append(fresh, &telemetryv1.Record{Spool: name, Event: e, Sender: sender})
	}
	if len(fresh) == 0 {
		return last, nil
	}
	return last, t.write(ctx, fresh)
}

// explained reports whether an event says itself that those before it are missing.
func explained(e *telemetryv1.Event, missing uint64) bool {
	return e.GetKind() == telemetryv1.Kind_KIND_TRAIL && e.GetLost() >= missing && missing <= maxMissing
}

// Note adds what Mixer itself has to say about the trail.
func (t *Trail) Note(ctx context.Context, e *telemetryv1.Event) error {
	t.appending.Lock()
	defer t.appending.Unlock()
	t.mu.Lock()
	e.Sequence = t.spools[OwnSpool].last + 1
	t.mu.Unlock()
	e.Kind = telemetryv1.Kind_KIND_TRAIL
	return t.write(ctx, []*telemetryv1.Record{{Spool: OwnSpool, Event: e, Sender: OwnSpool}})
}

// Knows reports whether the trail has anything of a spool.
func (t *Trail) Knows(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.spools[name]
	return ok
}

// write adds records to the log. The caller holds appending.
func (t *Trail) write(ctx context.Context, records []*telemetryv1.Record) error {
	entries := make([][]byte, len(records))
	for i, r := range records {
		raw, err := protojson.Marshal(r)
		if err != nil {
			return fmt.Errorf("audit event %s/%d: %w", r.GetSpool(), r.GetEvent().GetSequence(), err)
		}
		if entries[i] = printable.JSON(raw); len(entries[i]) > maxEntry {
			return Refusal(fmt.Sprintf("event %d has %d bytes in the trail, more than %d", r.GetEvent().GetSequence(), len(entries[i]), maxEntry))
		}
	}
	futures := make([]tessera.IndexFuture, len(entries))
	for i, raw := range entries {
		futures[i] = t.appender.Add(ctx, tessera.NewEntry(raw))
	}
	for i, future := range futures {
		index, err := future()
		if err != nil {
			return fmt.Errorf("writing audit event %s/%d: %w", records[i].GetSpool(), records[i].GetEvent().GetSequence(), err)
		}
		records[i].Index = index.Index
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		t.keep(r)
	}
	close(t.changed)
	t.changed = make(chan struct{})
	return nil
}

// Size returns how many events the trail has.
func (t *Trail) Size() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.appended
}

// Recent returns the records from position on (as counted by an earlier call; zero for all in memory), the position
// after them, and a channel that is closed when there are more.
func (t *Trail) Recent(position uint64) ([]*telemetryv1.Record, uint64, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	oldest := t.appended - uint64(len(t.recent))
	from := max(position, oldest)
	var out []*telemetryv1.Record
	if from < t.appended {
		out = append(out, t.recent[from-oldest:]...)
	}
	return out, t.appended, t.changed
}

// Checkpoint returns the log's latest signed checkpoint.
func (t *Trail) Checkpoint(ctx context.Context) ([]byte, error) { return t.reader.ReadCheckpoint(ctx) }
