package callers

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one goes through
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// codec decodes what a pod sends if that will not take much more memory than it took on the wire. Protobuf's shortest
// message in a list is two bytes, and more than a hundred when it is decoded.
type codec struct {
	encoding.CodecV2
	turn *turn
}

// newCodec returns gRPC's codec, which bounds what it reads, and does not copy configuration that pods share.
func newCodec(t *turn) codec { return codec{deltaxds.Codec(), t} }

// What messages may cost decoded, in bytes: sixteen times what is small on the wire, six times what is large. Envoy's
// statistics take less than five times.
const (
	costOfSmall = 16 * small
	costOfLarge = 6 * large
	// maxLogs is a batch of log records. Envoy sends one when it has 16 KB; they are not decoded here.
	maxLogs = 1 << 20
)

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	limit := costOfSmall
	if data.Len() > small {
		limit = costOfLarge
		defer c.turn.decoded(data.Len())
	}
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", v)
	}
	if _, logs := m.(*emptypb.Empty); logs && data.Len() > maxLogs {
		return fmt.Errorf("a batch of log records of %d bytes where %d are allowed", data.Len(), maxLogs)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	if left := afford(limit, b.ReadOnlyData(), m.ProtoReflect().Descriptor(), 0); left < 0 {
		return errors.New("the message would take too much memory")
	}
	return proto.Unmarshal(b.ReadOnlyData(), m)
}

// What things take besides their bytes, about.
const (
	perMessage = 96
	perField   = 24
	maxDepth   = 64
)

// afford returns what is left of a budget when a message is decoded; less than 0 if it is not enough. What is no protobuf
// is left to those who decode.
func afford(budget int, b []byte, d protoreflect.MessageDescriptor, depth int) int {
	budget -= perMessage
	if depth > maxDepth {
		return -1
	}
	for len(b) > 0 && budget >= 0 {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return budget
		}
		size := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if size < 0 {
			return budget
		}
		budget -= perField
		f := d.Fields().ByNumber(number)
		if f == nil || kind != protowire.BytesType {
			budget -= size
		} else if value, _ := protowire.ConsumeBytes(b[tag:]); f.Message() != nil {
			budget = afford(budget, value, f.Message(), depth+1)
		} else if f.IsList() && f.Kind() != protoreflect.StringKind && f.Kind() != protoreflect.BytesKind {
			budget -= 8 * size // packed numbers, which are a byte each at least
		} else {
			budget -= size
		}
		b = b[tag+size:]
	}
	return budget
}
