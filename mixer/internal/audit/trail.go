// Package audit keeps the audit trail: an append-only transparency log (C2SP tlog-tiles, signed checkpoints) on disk.
// An event is acknowledged only when it is in the log, and is in it once however often it is delivered.
package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Origin names the log in its checkpoints.
const Origin = "bulwark.dev/audit"

const (
	batchSize     = 256
	batchAge      = 20 * time.Millisecond // an event waits at most this long for others before it is written
	bundleEntries = 256                   // entries of a full bundle, fixed by tlog-tiles
	recentKept    = 20000                 // records held in memory for tail and queries
)

// Trail is safe for concurrent use.
type Trail struct {
	appender *tessera.Appender
	reader   tessera.LogReader
	shutdown func(context.Context) error

	appending sync.Mutex // one batch at a time, so that a spool's sequence only rises

	mu       sync.Mutex
	have     map[string]uint64 // spool → highest sequence in the log
	recent   []*telemetryv1.Record
	changed  chan struct{} // closed and replaced at each append
	appended uint64
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
	t := &Trail{appender: appender, reader: reader, shutdown: shutdown, have: map[string]uint64{}, changed: make(chan struct{})}
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
			if err := protojson.Unmarshal(raw, record); err != nil {
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
	t.have[r.GetSpool()] = max(t.have[r.GetSpool()], r.GetEvent().GetSequence())
	t.recent = append(t.recent, r)
	if len(t.recent) > 2*recentKept {
		t.recent = append([]*telemetryv1.Record(nil), t.recent[len(t.recent)-recentKept:]...)
	}
	t.appended++
}

// Append adds a spool's events, which must be in rising sequence, and returns when they are on disk; those that the
// trail has already are dropped. It returns the highest sequence that the trail now has of the spool.
func (t *Trail) Append(ctx context.Context, spool string, events []*telemetryv1.Event) (uint64, error) {
	t.appending.Lock()
	defer t.appending.Unlock()
	t.mu.Lock()
	last := t.have[spool]
	t.mu.Unlock()
	type pending struct {
		record *telemetryv1.Record
		index  tessera.IndexFuture
	}
	var added []pending
	for _, e := range events {
		if e.GetSequence() <= last {
			continue
		}
		last = e.GetSequence()
		record := &telemetryv1.Record{Spool: spool, Event: e}
		raw, err := protojson.Marshal(record)
		if err != nil {
			return 0, fmt.Errorf("audit event %s/%d: %w", spool, e.GetSequence(), err)
		}
		added = append(added, pending{record, t.appender.Add(ctx, tessera.NewEntry(raw))})
	}
	for _, p := range added {
		index, err := p.index()
		if err != nil {
			return 0, fmt.Errorf("writing audit event %s/%d: %w", spool, p.record.GetEvent().GetSequence(), err)
		}
		p.record.Index = index.Index
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range added {
		t.keep(p.record)
	}
	if len(added) > 0 {
		close(t.changed)
		t.changed = make(chan struct{})
	}
	return max(last, t.have[spool]), nil
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
