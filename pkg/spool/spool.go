// Package spool keeps audit events on disk until Mixer has them on its own.
//
// An event is appended to the operating system's cache at once and forced to the disk (fsync) within SyncEvery, together
// with those that came meanwhile. Only what is on the disk is sent. So a killed process loses nothing; a node that loses
// power loses at most the events of the last SyncEvery, and never sends two events under one sequence.
package spool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// SyncEvery is how often appended events are forced to the disk.
const SyncEvery = 100 * time.Millisecond

// afterDamage is skipped in the sequence when records were damaged: what was sent under the numbers that are lost must
// not be confused with what comes.
const afterDamage = 1 << 20

// Spool belongs to one process.
type Spool struct {
	dir      string
	id       string
	maxBytes int64
	now      func() time.Time
	observer *telemetryv1.Workload // of events about the spool itself

	mu       sync.Mutex
	segments []*segment // the last is being written
	file     *os.File
	next     uint64 // sequence of the next event
	synced   uint64 // the last event that is on the disk
	acked    uint64 // the last event that Mixer has
	lost     uint64 // events dropped since the last that was kept
	total    uint64 // events dropped since the start
	failure  error  // why the last write failed
	wake     chan struct{}
}

// Open returns the spool in dir, which holds at most maxBytes. The observer is named in events about the spool itself.
func Open(dir string, maxBytes int64, observer *telemetryv1.Workload, now func() time.Time) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &Spool{dir: dir, maxBytes: maxBytes, now: now, observer: observer, wake: make(chan struct{}, 1)}
	var err error
	if err := s.disown(); err != nil {
		return nil, err
	}
	if s.id, err = readOrMakeID(filepath.Join(dir, "id")); err != nil {
		return nil, err
	}
	if s.acked, err = readCursor(filepath.Join(dir, "acked")); err != nil {
		return nil, err
	}
	if s.segments, err = listSegments(dir); err != nil {
		return nil, err
	}
	return s, s.recover()
}

// disown drops what another node has left in the directory, as in that of a machine that was cloned or renamed: Mixer takes a
// spool from the node that has it and from no other. How many events go is recorded, as of those that a full spool drops.
func (s *Spool) disown() error {
	path := filepath.Join(s.dir, "node")
	node, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	if string(node) == s.observer.GetNode() {
		return nil
	}
	if err == nil {
		acked, err := readCursor(filepath.Join(s.dir, "acked"))
		if err != nil {
			return err
		}
		segments, err := listSegments(s.dir)
		if err != nil {
			return err
		}
		for _, seg := range segments {
			if _, err := seg.scan(); err != nil {
				return err
			}
			if seg.last > acked {
				s.lost += seg.last - max(acked, seg.first-1)
			}
			if err := os.Remove(seg.path); err != nil {
				return fmt.Errorf("spool: %w", err)
			}
		}
		for _, name := range []string{"acked", "id"} {
			if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("spool: %w", err)
			}
		}
		s.total = s.lost
	}
	return replaceFile(path, s.observer.GetNode(), true)
}

// missing is an event about n events that are not there.
func (s *Spool) missing(n, sequence uint64) *telemetryv1.Event {
	return &telemetryv1.Event{Sequence: sequence, Kind: telemetryv1.Kind_KIND_TRAIL, Time: timestamppb.New(s.now()), Observer: s.observer, Lost: n,
		Reason: "records of the spool were damaged on the disk; so many numbers of events are missing at most"}
}

// recover reads what an earlier process has left.
func (s *Spool) recover() error {
	damage := false
	last := s.acked
	for _, seg := range s.segments {
		damaged, err := seg.scan()
		if err != nil {
			return err
		}
		damage = damage || damaged
		last = max(last, seg.last, seg.first-1)
	}
	s.next = last + 1
	if damage {
		s.next += afterDamage
	}
	s.synced = last
	return s.roll()
}

// roll begins a new segment. Called with mu held, or before the spool is shared.
func (s *Spool) roll() error {
	path := segmentPath(s.dir, s.next)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return errors.Join(err, f.Close())
	}
	if s.file != nil {
		if err := errors.Join(s.file.Sync(), s.file.Close()); err != nil {
			return errors.Join(fmt.Errorf("spool: %w", err), f.Close())
		}
	}
	s.file = f
	if n := len(s.segments); n == 0 || s.segments[n-1].path != path {
		s.segments = append(s.segments, &segment{first: s.next, path: path})
	}
	return nil
}

// ID names the spool.
func (s *Spool) ID() string { return s.id }

// Append adds an event and gives it its sequence. It reports whether the event is kept: if the spool is full or the disk
// fails, the event is lost, and that is recorded as soon as there is room again.
func (s *Spool) Append(e *telemetryv1.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 && s.bytes()+2*maxEvent <= s.maxBytes {
		gap := &telemetryv1.Event{Kind: telemetryv1.Kind_KIND_TRAIL, Time: timestamppb.New(s.now()), Observer: s.observer, Lost: s.lost,
			Reason: "the spool was full, its disk failed, or it was another node's"}
		if s.write(gap) == nil {
			s.lost = 0
		}
	}
	if s.lost > 0 || s.bytes()+maxEvent > s.maxBytes {
		s.drop(errFull)
		return false
	}
	if err := s.write(e); err != nil {
		s.drop(err)
		return false
	}
	return true
}

var errFull = errors.New("spool is full")

// drop is called with mu held.
func (s *Spool) drop(err error) {
	s.lost++
	s.total++
	s.failure = err
}

// write is called with mu held.
func (s *Spool) write(e *telemetryv1.Event) error {
	active := s.segments[len(s.segments)-1]
	if active.size >= segmentSize {
		if err := s.roll(); err != nil {
			return err
		}
		active = s.segments[len(s.segments)-1]
	}
	e.Sequence = s.next
	record, err := encode(e)
	if err != nil {
		return err
	}
	if _, err := s.file.Write(record); err != nil {
		// Part of the record may be in the file. It has to go, or everything after it could not be read.
		if e := s.file.Truncate(active.size); e != nil {
			err = errors.Join(err, e)
		}
		return fmt.Errorf("spool: %w", err)
	}
	active.size += int64(len(record))
	active.last = s.next
	s.next++
	s.failure = nil
	return nil
}

// Sync forces what was appended to the disk and wakes the sender. It is called every SyncEvery.
func (s *Spool) Sync() error {
	s.mu.Lock()
	last, file := s.next-1, s.file
	pending := last > s.synced
	s.mu.Unlock()
	if !pending {
		return nil
	}
	// Not under the lock: events go on coming while the disk works. A roll meanwhile syncs and closes this file.
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("spool: %w", err)
	}
	s.mu.Lock()
	s.synced = max(s.synced, last)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// Ack records that Mixer has every event up to the sequence, and frees what only held those.
func (s *Spool) Ack(sequence uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sequence <= s.acked {
		return nil
	}
	if sequence >= s.next {
		return fmt.Errorf("spool: event %d was acknowledged, the last one is %d", sequence, s.next-1)
	}
	s.acked = sequence
	if err := writeCursor(filepath.Join(s.dir, "acked"), sequence); err != nil {
		return err
	}
	for len(s.segments) > 1 && s.segments[1].first-1 <= sequence {
		if err := os.Remove(s.segments[0].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("spool: %w", err)
		}
		s.segments = s.segments[1:]
	}
	return nil
}

// bytes is called with mu held.
func (s *Spool) bytes() int64 {
	var n int64
	for _, seg := range s.segments {
		n += seg.size
	}
	return n
}

// Stats is the state of the spool.
type Stats struct {
	Bytes   int64
	Unacked uint64 // events that Mixer does not have yet, or numbers that were skipped
	Lost    uint64 // events dropped since the start
	Failure error  // why the last event was dropped, nil once one is kept again
}

// Stats returns the state of the spool.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Bytes: s.bytes(), Unacked: s.next - 1 - s.acked, Lost: s.total, Failure: s.failure}
}

// Close forces everything to the disk.
func (s *Spool) Close() error {
	err := s.Sync()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.file.Close())
}

func readOrMakeID(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) == 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("spool: %w", err)
	}
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("spool: %w", err)
	}
	id := hex.EncodeToString(raw[:])
	return id, replaceFile(path, id, true)
}

func readCursor(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("spool: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, nil // sending again what Mixer has is harmless
	}
	return n, nil
}

// writeCursor does not wait for the disk: an older cursor only means that some events are sent twice.
func writeCursor(path string, sequence uint64) error {
	return replaceFile(path, strconv.FormatUint(sequence, 10), false)
}

func replaceFile(path, content string, sync bool) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	_, err = f.WriteString(content)
	if sync && err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
