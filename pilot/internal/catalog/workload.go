package catalog

import (
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Inbound is the listener of what comes to the pods of a class.
type Inbound struct{ Class string }

func (r Inbound) Type() string         { return deltaxds.ListenerType }
func (r Inbound) Name() string         { return translate.VirtualInbound }
func (r Inbound) Layer() Layer         { return Layer{classLayer, r.Class} }
func (r Inbound) exists(*Catalog) bool { return true }

func (r Inbound) make(c *Catalog) proto.Message {
	return translate.InboundListener(c.settings, c.workload(r.Class))
}

var workloads = family{
	of: func(_ *Catalog, l Layer) iter.Seq[Resource] {
		return func(yield func(Resource) bool) {
			if l.kind == classLayer {
				yield(Inbound{l.of})
			}
		}
	},
	touched: func(c *Catalog, t *turn) iter.Seq[Resource] {
		return func(yield func(Resource) bool) {
			for _, w := range t.classes {
				// Most changes of policies leave the listener as it is, and to find out is much cheaper than to make it.
				if (w.was == nil || !translate.SameInboundListener(c.settings, w.was, w.now)) && !yield(Inbound{w.class}) {
					return
				}
			}
		}
	},
}
