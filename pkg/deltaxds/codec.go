package deltaxds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of the messages that are marshalled by hand.
const (
	responseResources protowire.Number = 2 // of DeltaDiscoveryResponse
	resourceVersion   protowire.Number = 1 // of Resource
	resourceBody      protowire.Number = 2
	resourceName      protowire.Number = 3
	anyType           protowire.Number = 1 // of Any
	anyValue          protowire.Number = 2
)

// frame is the field of a response that holds a resource, marshalled. The value comes last, and is returned as it lies
// in the frame, so that it is kept once.
func frame(name, version, typeURL string, body []byte) (field, value []byte) {
	str := func(n protowire.Number, s string) int { return protowire.SizeTag(n) + protowire.SizeBytes(len(s)) }
	inner := str(anyType, typeURL) + protowire.SizeTag(anyValue) + protowire.SizeBytes(len(body))
	outer := str(resourceVersion, version) + str(resourceName, name) + protowire.SizeTag(resourceBody) + protowire.SizeBytes(inner)
	b := make([]byte, 0, protowire.SizeTag(responseResources)+protowire.SizeBytes(outer))
	header := func(n protowire.Number, size int) {
		b = protowire.AppendTag(b, n, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
	}
	header(responseResources, outer)
	header(resourceVersion, len(version))
	b = append(b, version...)
	header(resourceName, len(name))
	b = append(b, name...)
	header(resourceBody, inner)
	header(anyType, len(typeURL))
	b = append(b, typeURL...)
	header(anyValue, len(body))
	start := len(b)
	b = append(b, body...)
	return b, b[start:len(b):len(b)]
}

// Response is a response whose resources are marshalled already. It is a proto.Message, and any codec of gRPC marshals it
// as that; Codec shares the resources' bytes between all streams that send them.
type Response struct {
	*discovery.DeltaDiscoveryResponse
	frames []mem.Buffer // of the resources; nil for one that came from another server
}

func (r *Response) add(res *Resource) {
	r.Resources = append(r.Resources, res.wire)
	r.frames = append(r.frames, res.frame)
}

// Framed is another message with resources in it that knows how to marshal itself without copying them.
type Framed interface {
	Frames() (mem.BufferSlice, error)
}

// Codec marshals a Response, and what is Framed, without copying the resources in it, and everything else like gRPC's own.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(proto.Name)} }

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(Framed); ok {
		return f.Frames()
	}
	r, ok := v.(*Response)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: r.GetSystemVersionInfo(), TypeUrl: r.GetTypeUrl(), Nonce: r.GetNonce(),
		RemovedResources: r.GetRemovedResources(),
	}
	out := make(mem.BufferSlice, 0, len(r.frames)+1)
	for i, f := range r.frames {
		if f == nil {
			head.Resources = append(head.Resources, r.GetResources()[i])
			continue
		}
		out = append(out, f)
	}
	first, err := c.CodecV2.Marshal(head)
	if err != nil {
		return nil, err
	}
	return append(first, out...), nil
}
