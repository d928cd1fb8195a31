package spool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// batchBytes bounds a batch, far below what Mixer takes as one message: clients of the workloads choose how long events are,
// and a batch that is too long would never be taken, nor anything after it.
const batchBytes = 1 << 20

// reader reads events in order, up to what is on the disk.
type reader struct {
	spool *Spool
	next  uint64 // sequence from which events are wanted
	given uint64 // sequence of the last event that was returned; 0 if none was
	file  *os.File
	buf   *bufio.Reader
	first uint64 // of the open segment
}

// read returns up to n events, and not many more bytes than batchBytes; none if there are none yet. Where sequences are
// missing, because records were damaged on the disk, an event of their number stands in their place: each sequence that is
// returned follows from the last, so that nobody can leave out events without a word.
func (r *reader) read(n int) ([]*telemetryv1.Event, error) {
	out, err := r.scan(n)
	var whole []*telemetryv1.Event
	for _, e := range out {
		if expected := r.given + 1; e.GetSequence() > expected {
			whole = append(whole, r.spool.missing(e.GetSequence()-expected, e.GetSequence()-1))
		}
		whole, r.given = append(whole, e), e.GetSequence()
	}
	return whole, err
}

func (r *reader) scan(n int) ([]*telemetryv1.Event, error) {
	var out []*telemetryv1.Event
	size := int64(0)
	for len(out) < n && size < batchBytes {
		s := r.spool
		s.mu.Lock()
		synced := s.synced
		s.mu.Unlock()
		if r.next > synced {
			break
		}
		if r.file == nil {
			if ok, err := r.open(); err != nil || !ok {
				return out, err
			}
		}
		e, bytes, err := decode(r.buf)
		if errors.Is(err, io.EOF) {
			// The end of this segment; what is on the disk beyond it is in the next.
			if !r.advance() {
				break
			}
			continue
		}
		if err != nil {
			r.close()
			return out, fmt.Errorf("spool: reading segment %d: %w", r.first, err)
		}
		if e.GetSequence() > synced {
			// Appended, but not on the disk yet. It is read again when it is.
			r.close()
			break
		}
		if e.GetSequence() >= r.next {
			r.next = e.GetSequence() + 1
			out, size = append(out, e), size+bytes
		}
	}
	return out, nil
}

// open opens the segment that holds the next event, or the first after it.
func (r *reader) open() (bool, error) {
	s := r.spool
	s.mu.Lock()
	var found *segment
	for _, seg := range s.segments {
		if found == nil || seg.first <= r.next {
			found = seg
		}
	}
	path, first := found.path, found.first
	s.mu.Unlock()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // acknowledged and gone
	}
	if err != nil {
		return false, fmt.Errorf("spool: %w", err)
	}
	r.file, r.buf, r.first = f, bufio.NewReaderSize(f, 256<<10), first
	return true, nil
}

// advance closes the open segment, if there is a later one to go on with.
func (r *reader) advance() bool {
	s := r.spool
	s.mu.Lock()
	var later uint64
	for _, seg := range s.segments {
		if seg.first == r.first && seg.last >= r.next {
			later = r.next // something was appended after the end was seen: the same segment again
			break
		}
		if seg.first > r.first && seg.last != 0 {
			later = seg.first
			break
		}
	}
	s.mu.Unlock()
	r.close()
	if later == 0 {
		return false
	}
	r.next = max(r.next, later)
	return true
}

// newReader returns a reader from the first event that is not acknowledged.
func newReader(s *Spool) *reader {
	first := s.firstUnacked()
	return &reader{spool: s, next: first, given: first - 1}
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close() // it was only read
		r.file = nil
	}
}
