package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Outbound is the listener of all that a workload sends.
type Outbound struct{ Confined bool }

func (r Outbound) Type() string { return deltaxds.ListenerType }
func (r Outbound) Name() string { return translate.VirtualOutbound }
func (r Outbound) layers(*Catalog) []Layer {
	if r.Confined {
		return []Layer{Confined}
	}
	return []Layer{Mesh}
}

func (r Outbound) make(c *Catalog) proto.Message {
	return translate.OutboundListener(compile.ServiceRanges(c.snap), r.Confined)
}

var outbound = family{
	of: func(_ *Catalog, l Layer) []Resource {
		switch l {
		case Mesh:
			return []Resource{Outbound{}}
		case Confined:
			return []Resource{Outbound{Confined: true}}
		}
		return nil
	},
	touched: func(_ *Catalog, t *turn) []Resource {
		if t.effects.Ranges {
			return []Resource{Outbound{}, Outbound{Confined: true}}
		}
		return nil
	},
}
