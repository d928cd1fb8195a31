package fleet

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/utils/clock"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
)

// Dialer connects the agent of a node to Pilot; the options must be used.
type Dialer func(node string, options ...grpc.DialOption) (*grpc.ClientConn, error)

// agent is that of a node, as far as configuration goes. What it holds outlives its streams.
type agent struct {
	*nodexds.Node
	name  string
	fleet *Fleet
	dial  Dialer
}

func newAgent(f *Fleet, name string, dial Dialer) *agent {
	return &agent{nodexds.New(clock.RealClock{}), name, f, dial}
}

// serve keeps a stream to Pilot until ctx ends, and says once when what Pilot has sent first has been applied.
func (a *agent) serve(ctx context.Context, settled chan<- time.Time) error {
	conn, err := a.dial(a.name, grpc.WithStatsHandler(a.fleet.traffic))
	if err != nil {
		return err
	}
	defer conn.Close()
	first := sync.OnceFunc(func() { settled <- time.Now() })
	a.Run(ctx, func(ctx context.Context) (nodexds.RPC, error) {
		rpc, err := nodev1.NewNodeConfigurationClient(conn).Follow(ctx, grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		return &heard{NodeConfiguration_FollowClient: rpc, first: first}, nil
	}, slog.Default())
	return nil
}

// heard is a stream to Pilot that notices when its first update has been applied: that is when the next one is asked for.
type heard struct {
	nodev1.NodeConfiguration_FollowClient
	whole bool
	first func()
}

func (h *heard) Recv() (*nodev1.Update, error) {
	if h.whole {
		h.first()
	}
	u, err := h.NodeConfiguration_FollowClient.Recv()
	h.whole = err == nil && !u.GetMore()
	return u, err
}
