package catalog

import (
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Revocations is the configuration of a filter by which revocations hold, everywhere alike.
type Revocations struct{ Filter string }

func (r Revocations) Type() string            { return deltaxds.ExtensionConfigType }
func (r Revocations) Name() string            { return r.Filter }
func (r Revocations) layers(*Catalog) []Layer { return []Layer{Mesh} }

func (r Revocations) make(c *Catalog) proto.Message {
	return translate.Revocations(c.settings, compile.Revocations(c.snap), r.Filter)
}

var revocations = family{
	of:      func(_ *Catalog, l Layer) []Resource { return revocationsIf(l == Mesh) },
	touched: func(_ *Catalog, t *turn) []Resource { return revocationsIf(t.effects.Revocations) },
}

func revocationsIf(any bool) (out []Resource) {
	if any {
		for _, name := range translate.RevocationNames() {
			out = append(out, Revocations{name})
		}
	}
	return out
}
