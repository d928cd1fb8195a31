package catalog

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Fixed is a resource that every proxy has and that depends on nothing but the families of the cluster's addresses, and on where the proxy has a module from.
type Fixed struct {
	url, name string
	module    translate.ModuleSource
}

var made = makers()

func makers() map[Fixed]func(ipv6 bool) proto.Message {
	out := map[Fixed]func(ipv6 bool) proto.Message{
		{url: deltaxds.ClusterType, name: translate.PassthroughCluster}:    func(bool) proto.Message { return translate.Passthrough() },
		{url: deltaxds.ClusterType, name: translate.InboundCluster}:        func(ipv6 bool) proto.Message { return translate.Inbound(ipv6) },
		{url: deltaxds.ClusterType, name: translate.AdminCluster}:          func(bool) proto.Message { return translate.Admin() },
		{url: deltaxds.ClusterType, name: translate.RefusalCluster}:        func(bool) proto.Message { return translate.Refusal() },
		{url: deltaxds.ListenerType, name: translate.RefusalListener}:      func(bool) proto.Message { return translate.RefusalListenerAtSocket() },
		{url: deltaxds.ExtensionConfigType, name: translate.SharedForward}: func(bool) proto.Message { return translate.OutboundForward() },
		{url: deltaxds.ListenerType, name: translate.StatsListener}:        func(ipv6 bool) proto.Message { return translate.StatsListener15090(ipv6) },
	}
	for _, in := range []translate.ModuleSource{translate.ModuleSent, translate.ModuleByThePod} {
		out[Fixed{deltaxds.ExtensionConfigType, translate.OpenConnections, in}] = func(bool) proto.Message { return translate.KnowConnections(in) }
		out[Fixed{deltaxds.ExtensionConfigType, translate.OpenRequests, in}] = func(bool) proto.Message { return translate.KnowRequests(in) }
	}
	for _, f := range ipFamilies { // what the services of one share
		subset := compile.Subset(f)
		out[Fixed{url: deltaxds.ExtensionConfigType, name: translate.SharedIn(translate.SharedManager, subset)}] = func(bool) proto.Message { return translate.OutboundManager(subset) }
		out[Fixed{url: deltaxds.ExtensionConfigType, name: translate.SharedIn(translate.SharedCluster, subset)}] = func(bool) proto.Message { return translate.OutboundForwardCluster(subset) }
	}
	return out
}

func (r Fixed) Type() string            { return r.url }
func (r Fixed) Name() string            { return r.name }
func (r Fixed) layers(*Catalog) []Layer { return []Layer{Mesh.holding(r.name, r.module)} }

func (r Fixed) make(c *Catalog) proto.Message { return made[r](ipv6(c.snap)) }

func ipv6(snap *registry.Snapshot) bool { return compile.IPv6(compile.ServiceRanges(snap)) }

var fixed = family{
	of: those(allFixed),
	touched: func(c *Catalog, t *turn) []Resource {
		if !t.effects.Ranges || ipv6(t.was) == ipv6(c.snap) {
			return nil
		}
		return allFixed
	},
}

var allFixed = func() (out []Resource) {
	for r := range made {
		out = append(out, r)
	}
	return out
}()

// those lists what a layer has of resources that are always there.
func those(all []Resource) func(*Catalog, Layer) []Resource {
	return func(c *Catalog, l Layer) []Resource {
		return slices.DeleteFunc(slices.Clone(all), func(r Resource) bool { return !slices.Contains(r.layers(c), l) })
	}
}
