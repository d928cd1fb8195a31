package agents

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/stats"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
)

// Count is what there has been between agents and Pilot. Bytes are those of messages, within TLS.
type Count struct {
	FromPilot int64     `json:"bytesFromPilot"`
	ToPilot   int64     `json:"bytesToPilot"`
	Messages  int64     `json:"messagesFromPilot"`
	Applied   int64     `json:"streamsApplied"` // streams on which the first update of Pilot has been applied
	Last      time.Time `json:"last"`           // when something was said or heard last
}

// Since returns what there was after an earlier count.
func (c Count) Since(before Count) Count {
	return Count{c.FromPilot - before.FromPilot, c.ToPilot - before.ToPilot, c.Messages - before.Messages, c.Applied - before.Applied, c.Last}
}

// counters count from many goroutines. They are a stats.Handler of the connections to Pilot.
type counters struct{ from, to, messages, applied, last atomic.Int64 }

func (c *counters) now() Count {
	return Count{c.from.Load(), c.to.Load(), c.messages.Load(), c.applied.Load(), time.Unix(0, c.last.Load())}
}

// HandleRPC implements stats.Handler.
func (c *counters) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.InPayload:
		c.from.Add(int64(s.WireLength))
		c.messages.Add(1)
		c.last.Store(time.Now().UnixNano())
	case *stats.OutPayload:
		c.to.Add(int64(s.WireLength))
		c.last.Store(time.Now().UnixNano())
	}
}

// TagRPC implements stats.Handler.
func (*counters) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements stats.Handler.
func (*counters) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (*counters) HandleConn(context.Context, stats.ConnStats) {}

// heard is a stream that notices when its first update has been applied: that is when the next message is asked for.
type heard struct {
	nodexds.RPC
	agents *counters
	whole  bool // the first update has come
	done   bool
}

// Recv implements nodexds.RPC.
func (h *heard) Recv() (*nodev1.Update, error) {
	if h.whole && !h.done {
		h.done = true
		h.agents.applied.Add(1)
	}
	u, err := h.RPC.Recv()
	h.whole = h.whole || err == nil && !u.GetMore()
	return u, err
}
