package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Outbound is the listener of all that a workload sends.
type Outbound struct{}

func (r Outbound) Type() string            { return deltaxds.ListenerType }
func (r Outbound) Name() string            { return translate.VirtualOutbound }
func (r Outbound) layers(*Catalog) []Layer { return []Layer{Mesh} }

func (r Outbound) make(c *Catalog) proto.Message {
	return translate.OutboundListener(compile.ServiceRanges(c.snap))
}

var outbound = family{
	of:      func(_ *Catalog, l Layer) []Resource { return outboundIf(l == Mesh) },
	touched: func(_ *Catalog, t *turn) []Resource { return outboundIf(t.effects.Ranges) },
}

func outboundIf(any bool) []Resource {
	if any {
		return []Resource{Outbound{}}
	}
	return nil
}
