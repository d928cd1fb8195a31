package callers

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Whatever comes in, and in whatever pieces: it is read to the same end.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(""), uint8(1))
	f.Add([]byte("\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00"), uint8(3))         // an empty message
	f.Add([]byte("\x00\x00\x05\x00\x00\x00\x00\x00\x01\x00\xff\xff\xff\xff"), uint8(2))         // one that is too long
	f.Add([]byte("\x00\x00\x06\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"), uint8(200))   // padded
	f.Add([]byte("\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00"), uint8(7)) // a reset
	f.Fuzz(func(t *testing.T, sent []byte, piece uint8) {
		outcome := func(piece int) string {
			r := newFrames(small)
			r.skip = 0 // the preface is behind
			for b := sent; len(b) > 0; {
				n := min(piece, len(b))
				if err := r.read(b[:n]); err != nil {
					return err.Error()
				}
				b = b[n:]
			}
			if r.begun > 0 {
				return "a message above the limit has begun"
			}
			return fmt.Sprint(r.begun, r.skip, r.left, r.stream, len(r.head), len(r.open))
		}
		if whole, pieces := outcome(len(sent)+1), outcome(int(piece)+1); whole != pieces {
			t.Fatalf("in one piece: %s; in pieces of %d: %s", whole, int(piece)+1, pieces)
		}
	})
}

// What is decoded is what protobuf itself decodes, or nothing.
func FuzzCodec(f *testing.F) {
	f.Add([]byte("\x1a\x07default"))
	f.Add([]byte{0x1a, 0, 0x1a, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		var got, want discovery.DeltaDiscoveryRequest
		if newCodec(newTurn()).Unmarshal(mem.BufferSlice{mem.SliceBuffer(sent)}, &got) != nil {
			return
		}
		if err := proto.Unmarshal(sent, &want); err != nil || !proto.Equal(&got, &want) {
			t.Fatalf("%x: %v, %v where protobuf says %v", sent, err, &got, &want)
		}
	})
}
