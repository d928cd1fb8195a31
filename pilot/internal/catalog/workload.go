package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Inbound is the listener of what comes to the pods of a class.
type Inbound struct{ Class string }

func (r Inbound) Type() string            { return deltaxds.ListenerType }
func (r Inbound) Name() string            { return translate.VirtualInbound }
func (r Inbound) layers(*Catalog) []Layer { return []Layer{ofClass(r.Class)} }

func (r Inbound) make(c *Catalog) proto.Message {
	return translate.InboundListener(c.settings, c.workload(r.Class))
}

var workloads = family{
	of: func(_ *Catalog, l Layer) []Resource {
		if l.kind != classLayer {
			return nil
		}
		return []Resource{Inbound{l.of}}
	},
	touched: func(c *Catalog, t *turn) (out []Resource) {
		for _, w := range t.classes {
			// Most changes of policies leave the listener as it is, and to find out is much cheaper than to make it.
			if w.was == nil || !translate.SameInboundListener(c.settings, w.was, w.now) {
				out = append(out, Inbound{w.class})
			}
		}
		return out
	},
}
