package callers

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// Sizes of messages, in bytes. What the Workload API and SDS are asked is small; Envoy pushes all its statistics in one
// message, some megabytes in a large mesh, and tells a new agent all that it has.
const (
	small = 64 << 10
	large = 16 << 20
)

// maxOpen is how many streams of a connection may be in the middle of something. gRPC allows fewer, but some that it has
// ended itself may not be known here to have ended.
const maxOpen = 1000

// frames reads along what the client of one connection sends, and refuses what would cost the agent memory out of all
// proportion before gRPC has it: HTTP/2 (RFC 9113, section 4.1), with gRPC's messages in the DATA frames, each after a
// byte that says whether it is compressed and four of its length. gRPC itself limits a message for the whole server only.
type frames struct {
	limit int // of one message
	begun int // bytes of large messages that have begun since the caller looked

	skip   int // bytes that are of no interest: the preface, other frames
	head   []byte
	left   int // of a DATA frame
	ends   bool
	stream uint32
	open   map[uint32]*message
}

type message struct {
	prefix []byte
	left   int // bytes
	frames int // it may still come in
}

func newFrames(limit int) *frames {
	return &frames{limit: limit, skip: len(http2.ClientPreface), open: map[uint32]*message{}}
}

// read takes what has come next.
func (f *frames) read(b []byte) error {
	for len(b) > 0 {
		var n int
		switch {
		case f.skip > 0:
			n = min(f.skip, len(b))
			f.skip -= n
		case f.left > 0:
			n = min(f.left, len(b))
			f.left -= n
			if err := f.data(b[:n]); err != nil {
				return err
			}
			if f.left == 0 && f.ends {
				delete(f.open, f.stream)
			}
		default:
			n = min(9-len(f.head), len(b))
			f.head = append(f.head, b[:n]...)
			if len(f.head) == 9 {
				if err := f.frame(); err != nil {
					return err
				}
				f.head = f.head[:0]
			}
		}
		b = b[n:]
	}
	return nil
}

// frame begins a frame whose head is there.
func (f *frames) frame() error {
	length := int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
	kind, flags := http2.FrameType(f.head[3]), http2.Flags(f.head[4])
	f.stream = binary.BigEndian.Uint32(f.head[5:]) & (1<<31 - 1)
	if kind != http2.FrameData {
		f.skip = length
		if kind == http2.FrameRSTStream {
			delete(f.open, f.stream)
		}
		return nil
	}
	if flags.Has(http2.FlagDataPadded) {
		return errors.New("padded data, which no client of gRPC sends")
	}
	f.left, f.ends = length, flags.Has(http2.FlagDataEndStream)
	if length == 0 {
		if f.ends {
			delete(f.open, f.stream)
		}
		return nil
	}
	m := f.open[f.stream]
	if m == nil {
		if len(f.open) == maxOpen {
			return errors.New("too many streams that do not end")
		}
		m = &message{frames: fewFrames}
		f.open[f.stream] = m
	}
	// Each frame costs gRPC some dozens of bytes, however little is in it.
	if m.frames--; m.frames < 0 {
		return errors.New("a message in crumbs")
	}
	return nil
}

// fewFrames is how many a message may take at least; one more for each 256 bytes.
const fewFrames = 64

// data takes what a frame holds of a stream's messages.
func (f *frames) data(b []byte) error {
	m := f.open[f.stream]
	for len(b) > 0 {
		if m.left > 0 {
			n := min(m.left, len(b))
			m.left -= n
			b = b[n:]
		} else {
			n := min(5-len(m.prefix), len(b))
			m.prefix = append(m.prefix, b[:n]...)
			b = b[n:]
			if len(m.prefix) < 5 {
				return nil
			}
			if err := f.begin(m); err != nil {
				return err
			}
		}
		if m.left == 0 {
			m.prefix, m.frames = m.prefix[:0], fewFrames
		}
	}
	return nil
}

func (f *frames) begin(m *message) error {
	length := int(binary.BigEndian.Uint32(m.prefix[1:]))
	switch {
	case m.prefix[0] != 0:
		return errors.New("a compressed message")
	case length > f.limit:
		return fmt.Errorf("a message of %d bytes where %d are allowed", length, f.limit)
	case length > small:
		f.begun += length
	}
	m.left, m.frames = length, m.frames+length/256
	return nil
}
