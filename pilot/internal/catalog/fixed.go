package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Fixed is a resource that every proxy has and that depends on nothing but the families of the cluster's addresses.
type Fixed struct{ url, name string }

var made = makers()

func makers() map[Fixed]func(ipv6 bool) proto.Message {
	out := map[Fixed]func(ipv6 bool) proto.Message{
		{deltaxds.ClusterType, translate.PassthroughCluster}:      func(bool) proto.Message { return translate.Passthrough() },
		{deltaxds.ClusterType, translate.InboundCluster}:          func(ipv6 bool) proto.Message { return translate.Inbound(ipv6) },
		{deltaxds.ClusterType, translate.AdminCluster}:            func(bool) proto.Message { return translate.Admin() },
		{deltaxds.ClusterType, translate.RefusalCluster}:          func(bool) proto.Message { return translate.Refusal() },
		{deltaxds.ListenerType, translate.RefusalListener}:        func(bool) proto.Message { return translate.RefusalListenerAtSocket() },
		{deltaxds.ExtensionConfigType, translate.SharedForward}:   func(bool) proto.Message { return translate.OutboundForward() },
		{deltaxds.ExtensionConfigType, translate.OpenConnections}: func(bool) proto.Message { return translate.KnowConnections() },
		{deltaxds.ExtensionConfigType, translate.OpenRequests}:    func(bool) proto.Message { return translate.KnowRequests() },
		{deltaxds.ListenerType, translate.StatsListener}:          func(ipv6 bool) proto.Message { return translate.StatsListener15090(ipv6) },
	}
	for _, f := range ipFamilies { // what the services of one share
		subset := compile.Subset(f)
		out[Fixed{deltaxds.ExtensionConfigType, translate.SharedIn(translate.SharedManager, subset)}] = func(bool) proto.Message { return translate.OutboundManager(subset) }
		out[Fixed{deltaxds.ExtensionConfigType, translate.SharedIn(translate.SharedCluster, subset)}] = func(bool) proto.Message { return translate.OutboundForwardCluster(subset) }
	}
	return out
}

func (r Fixed) Type() string            { return r.url }
func (r Fixed) Name() string            { return r.name }
func (r Fixed) layers(*Catalog) []Layer { return []Layer{Mesh} }

func (r Fixed) make(c *Catalog) proto.Message { return made[r](ipv6(c.snap)) }

func ipv6(snap *registry.Snapshot) bool { return compile.IPv6(compile.ServiceRanges(snap)) }

var fixed = family{
	of: func(_ *Catalog, l Layer) []Resource { return fixedIf(l == Mesh) },
	touched: func(c *Catalog, t *turn) []Resource {
		return fixedIf(t.effects.Ranges && ipv6(t.was) != ipv6(c.snap))
	},
}

func fixedIf(any bool) (out []Resource) {
	if any {
		for r := range made {
			out = append(out, r)
		}
	}
	return out
}
