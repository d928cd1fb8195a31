package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Fixed is a resource that every proxy has and that depends on nothing.
type Fixed struct{ url, name string }

var made = map[Fixed]func() proto.Message{
	{deltaxds.ClusterType, translate.PassthroughCluster}:    func() proto.Message { return translate.Passthrough() },
	{deltaxds.ClusterType, translate.InboundCluster}:        func() proto.Message { return translate.Inbound() },
	{deltaxds.ClusterType, translate.AdminCluster}:          func() proto.Message { return translate.Admin() },
	{deltaxds.ClusterType, translate.RefusalCluster}:        func() proto.Message { return translate.Refusal() },
	{deltaxds.ListenerType, translate.RefusalListener}:      func() proto.Message { return translate.RefusalListenerAtSocket() },
	{deltaxds.ExtensionConfigType, translate.SharedManager}: func() proto.Message { return translate.OutboundManager() },
	{deltaxds.ExtensionConfigType, translate.SharedForward}: func() proto.Message { return translate.OutboundForward() },
	{deltaxds.ExtensionConfigType, translate.SharedCluster}: func() proto.Message { return translate.OutboundForwardCluster() },
	{deltaxds.ListenerType, translate.StatsListener}:        func() proto.Message { return translate.StatsListener15090() },
}

func (r Fixed) Type() string                { return r.url }
func (r Fixed) Name() string                { return r.name }
func (r Fixed) layers(*Catalog) []Layer     { return []Layer{Mesh} }
func (r Fixed) make(*Catalog) proto.Message { return made[r]() }

var fixed = family{of: func(_ *Catalog, l Layer) (out []Resource) {
	if l == Mesh {
		for r := range made {
			out = append(out, r)
		}
	}
	return out
}}
