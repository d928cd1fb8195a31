package nodexds

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Outgoing is an Update whose resources are marshalled already and shared by all the nodes that are sent them.
type Outgoing struct {
	Number  uint64
	More    bool
	Words   []*nodev1.Word
	Changes []Change
}

// Change is that of a layer, all of one type.
type Change struct {
	Layer, Type string
	Resources   []*deltaxds.Resource
	Removed     []string
}

// partSize is about how many bytes of resources are in one message.
const partSize = 1 << 20

// Parts are the update in messages of bounded size, to be sent in this order. A single resource may be larger.
func (o *Outgoing) Parts() []*Outgoing {
	part := &Outgoing{Number: o.Number, Words: o.Words}
	parts, size := []*Outgoing{part}, 0
	for _, c := range o.Changes {
		rest := c.Resources
		c.Resources = nil
		for _, r := range rest {
			n := r.Frame().Len()
			if size > 0 && size+n > partSize {
				part.Changes, part.More = append(part.Changes, c), true
				c.Removed, c.Resources = nil, nil
				part, size = &Outgoing{Number: o.Number}, 0
				parts = append(parts, part)
			}
			c.Resources = append(c.Resources, r)
			size += n
		}
		part.Changes = append(part.Changes, c)
	}
	return parts
}

// updateChanges is the number of the field of Update. That of Change's resources is the one that a deltaxds frame has.
const updateChanges protowire.Number = 4

// Frames implements deltaxds.Framed.
func (o *Outgoing) Frames() (mem.BufferSlice, error) {
	head, err := proto.Marshal(&nodev1.Update{Number: o.Number, More: o.More, Words: o.Words})
	if err != nil {
		return nil, fmt.Errorf("marshalling update %d: %w", o.Number, err)
	}
	out := mem.BufferSlice{}
	for _, c := range o.Changes {
		own, err := proto.Marshal(&nodev1.Change{Layer: c.Layer, Type: c.Type, Removed: c.Removed})
		if err != nil {
			return nil, fmt.Errorf("marshalling a change of layer %s: %w", c.Layer, err)
		}
		size := len(own)
		for _, r := range c.Resources {
			size += r.Frame().Len()
		}
		head = protowire.AppendTag(head, updateChanges, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(size))
		out = append(out, mem.SliceBuffer(append(head, own...)))
		head = nil
		for _, r := range c.Resources {
			out = append(out, r.Frame())
		}
	}
	if head != nil {
		out = append(out, mem.SliceBuffer(head))
	}
	return out, nil
}

// Message is the update as whoever receives it reads it.
func (o *Outgoing) Message() (*nodev1.Update, error) {
	frames, err := o.Frames()
	if err != nil {
		return nil, err
	}
	u := &nodev1.Update{}
	if err := proto.Unmarshal(frames.Materialize(), u); err != nil {
		return nil, fmt.Errorf("reading update %d: %w", o.Number, err)
	}
	return u, nil
}
