package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Revocations is the configuration of a filter by which revocations hold, everywhere alike but for where proxies have a module from.
type Revocations struct {
	Filter string
	Module translate.ModuleSource
}

func (r Revocations) Type() string            { return deltaxds.ExtensionConfigType }
func (r Revocations) Name() string            { return r.Filter }
func (r Revocations) layers(*Catalog) []Layer { return []Layer{Mesh.holding(r.Filter, r.Module)} }

func (r Revocations) make(c *Catalog) proto.Message {
	return translate.Revocations(c.settings, compile.Revocations(c.snap), r.Filter, r.Module)
}

var revocations = family{
	of: those(allRevocations),
	touched: func(_ *Catalog, t *turn) []Resource {
		if !t.effects.Revocations {
			return nil
		}
		return allRevocations
	},
}

var allRevocations = func() []Resource {
	out := []Resource{Revocations{translate.OpenRevocations, translate.ModuleByThePod}}
	for _, name := range translate.RevocationNames() {
		out = append(out, Revocations{name, translate.ModuleSent})
	}
	return out
}()
