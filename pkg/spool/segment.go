package spool

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// A segment is a file of records: length and CRC-32C of an event, 4 bytes each, little-endian, then the marshalled
// event. Its name is the sequence of its first event. Only the last segment is written to.
const (
	headerSize  = 8
	maxEvent    = 64 << 10
	segmentSize = 8 << 20
	suffix      = ".seg"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type segment struct {
	first uint64
	last  uint64 // 0 while it is empty
	size  int64
	path  string
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, suffix))
}

func encode(e *telemetryv1.Event) ([]byte, error) {
	body, err := proto.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("marshalling event %d: %w", e.GetSequence(), err)
	}
	if len(body) > maxEvent {
		return nil, fmt.Errorf("event %d has %d bytes, more than %d", e.GetSequence(), len(body), maxEvent)
	}
	out := make([]byte, headerSize, headerSize+len(body))
	binary.LittleEndian.PutUint32(out, uint32(len(body)))
	binary.LittleEndian.PutUint32(out[4:], crc32.Checksum(body, castagnoli))
	return append(out, body...), nil
}

// errDamaged says that a record is cut off or altered: what follows it in its segment cannot be read.
var errDamaged = errors.New("damaged record")

// decode reads one record; io.EOF means that there is none.
func decode(r *bufio.Reader) (*telemetryv1.Event, int64, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, 0, errDamaged
		}
		return nil, 0, err
	}
	n := binary.LittleEndian.Uint32(header[:])
	if n > maxEvent {
		return nil, 0, errDamaged
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, 0, errDamaged
		}
		return nil, 0, err
	}
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
		return nil, 0, errDamaged
	}
	e := &telemetryv1.Event{}
	if err := proto.Unmarshal(body, e); err != nil {
		return nil, 0, errDamaged
	}
	return e, headerSize + int64(n), nil
}

// listSegments returns the segments of a directory in order, by their names alone.
func listSegments(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	var out []*segment
	for _, e := range entries {
		number, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("spool: file %s is no segment", e.Name())
		}
		out = append(out, &segment{first: first, path: filepath.Join(dir, e.Name())})
	}
	slices.SortFunc(out, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return out, nil
}

// scan finds where a segment ends and which event is its last. What comes after a damaged record is cut off.
func (s *segment) scan() (damaged bool, err error) {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("spool: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 256<<10)
	for {
		e, n, err := decode(r)
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if errors.Is(err, errDamaged) {
			if err := f.Truncate(s.size); err != nil {
				return true, fmt.Errorf("spool: cutting off a damaged record: %w", err)
			}
			return true, f.Sync()
		}
		if err != nil {
			return false, fmt.Errorf("spool: reading %s: %w", s.path, err)
		}
		s.size += n
		s.last = e.GetSequence()
	}
}
