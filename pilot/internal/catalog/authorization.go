package catalog

import (
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Authorization is the configuration of a filter by which policies hold for the pods of a class, some of them with a module that comes from somewhere.
type Authorization struct {
	Class, Filter string
	Module        translate.ModuleSource
}

func (r Authorization) Type() string { return deltaxds.ExtensionConfigType }
func (r Authorization) Name() string { return r.Filter }

func (r Authorization) layers(c *Catalog) []Layer {
	if !translate.HasAuthorization(c.workload(r.Class), r.Filter) {
		return nil
	}
	return []Layer{ofClass(r.Class).holding(r.Filter, r.Module)}
}

func (r Authorization) make(c *Catalog) proto.Message {
	return translate.Authorization(c.workload(r.Class), r.Filter, r.Module)
}

var authorization = family{
	of: func(c *Catalog, l Layer) []Resource {
		if l.kind != classLayer {
			return nil
		}
		return slices.DeleteFunc(filtersOf(l.of), func(r Resource) bool { return !slices.Contains(r.layers(c), l) })
	},
	touched: func(_ *Catalog, t *turn) (out []Resource) {
		for _, w := range t.classes {
			same := w.was != nil && w.was.Other == w.now.Other && slices.Equal(w.was.Ports, w.now.Ports) &&
				reflect.DeepEqual(w.was.Policies, w.now.Policies) && reflect.DeepEqual(w.was.Issuers, w.now.Issuers)
			if !same {
				out = append(out, filtersOf(w.class)...)
			}
		}
		return out
	},
}

func filtersOf(class string) []Resource {
	out := []Resource{Authorization{class, translate.OpenRules, translate.ModuleByThePod}}
	for _, name := range translate.AuthorizationNames {
		out = append(out, Authorization{class, name, translate.ModuleSent})
	}
	return out
}
