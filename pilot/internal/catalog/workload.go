package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
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

// InboundRoutes is a table of the requests that come to the pods of a class.
type InboundRoutes struct{ Class, Table string }

func (r InboundRoutes) Type() string            { return deltaxds.RouteType }
func (r InboundRoutes) Name() string            { return r.Table }
func (r InboundRoutes) layers(*Catalog) []Layer { return []Layer{ofClass(r.Class)} }

func (r InboundRoutes) make(c *Catalog) proto.Message {
	return translate.InboundRoutes(c.workload(r.Class), anyRevoked(c.snap), r.Table)
}

func anyRevoked(snap *registry.Snapshot) bool { return len(compile.Revocations(snap)) > 0 }

// inboundRoutes follow Services, modes, which kinds of policies there are, and whether anything is revoked.
var inboundRoutes = family{
	of: func(_ *Catalog, l Layer) []Resource {
		if l != ofClass(l.of) {
			return nil
		}
		return tablesOf(l.of)
	},
	touched: func(c *Catalog, t *turn) (out []Resource) {
		if t.effects.Revocations && anyRevoked(t.was) != anyRevoked(c.snap) {
			for class := range c.classes {
				out = append(out, tablesOf(class)...)
			}
			return out
		}
		for _, w := range t.classes {
			if w.was == nil || !translate.SameInboundRoutes(w.was, w.now) {
				out = append(out, tablesOf(w.class)...)
			}
		}
		return out
	},
}

func tablesOf(class string) (out []Resource) {
	for _, name := range translate.InboundTables() {
		out = append(out, InboundRoutes{class, name})
	}
	return out
}

var workloads = family{
	of: func(_ *Catalog, l Layer) []Resource {
		if l != ofClass(l.of) {
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
