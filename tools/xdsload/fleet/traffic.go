package fleet

import (
	"context"
	"sync/atomic"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/stats"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Traffic is what the proxies were sent.
type Traffic struct {
	Bytes     int64            `json:"bytes"` // on the sockets, without HTTP/2's headers
	Responses int64            `json:"responses"`
	Resources int64            `json:"resources"`
	Removals  int64            `json:"removals"`
	Types     map[string]Share `json:"types"`
}

// Share is a type's part of the traffic; the bytes are those of the resources' content.
type Share struct {
	Bytes     int64 `json:"bytes"`
	Resources int64 `json:"resources"`
}

// Names are the short names of the types, in the order in which people list them.
var Names = []string{"CDS", "EDS", "ECDS", "LDS", "RDS"}

var shortName = map[string]string{
	deltaxds.ClusterType: "CDS", deltaxds.EndpointType: "EDS", deltaxds.ExtensionConfigType: "ECDS",
	deltaxds.ListenerType: "LDS", deltaxds.RouteType: "RDS",
}

// counters count traffic from many goroutines.
type counters struct {
	bytes, responses, removals atomic.Int64
	types                      map[string]*share
}

type share struct{ bytes, resources atomic.Int64 }

func newCounters() *counters {
	c := &counters{types: map[string]*share{}}
	for url := range shortName {
		c.types[url] = &share{}
	}
	return c
}

func (c *counters) count(resp *discovery.DeltaDiscoveryResponse) {
	c.responses.Add(1)
	c.removals.Add(int64(len(resp.GetRemovedResources())))
	t := c.types[resp.GetTypeUrl()]
	if t == nil {
		return
	}
	t.resources.Add(int64(len(resp.GetResources())))
	for _, r := range resp.GetResources() {
		t.bytes.Add(int64(len(r.GetResource().GetValue())))
	}
}

// Traffic returns what was sent so far.
func (f *Fleet) Traffic() Traffic {
	t := Traffic{Bytes: f.traffic.bytes.Load(), Responses: f.traffic.responses.Load(), Removals: f.traffic.removals.Load(), Types: map[string]Share{}}
	for url, s := range f.traffic.types {
		t.Types[shortName[url]] = Share{s.bytes.Load(), s.resources.Load()}
		t.Resources += s.resources.Load()
	}
	return t
}

// Since returns what was sent after an earlier count.
func (t Traffic) Since(before Traffic) Traffic {
	out := Traffic{t.Bytes - before.Bytes, t.Responses - before.Responses, t.Resources - before.Resources, t.Removals - before.Removals, map[string]Share{}}
	for name, s := range t.Types {
		out.Types[name] = Share{s.Bytes - before.Types[name].Bytes, s.Resources - before.Types[name].Resources}
	}
	return out
}

// HandleRPC implements stats.Handler: it counts bytes as they come off the wire.
func (c *counters) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		c.bytes.Add(int64(in.WireLength))
	}
}

// TagRPC implements stats.Handler.
func (*counters) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements stats.Handler.
func (*counters) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (*counters) HandleConn(context.Context, stats.ConnStats) {}
