package registry

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/go-memdb"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// selecting is an object that selects pods by their labels.
type selecting interface {
	// selects returns the object's ID, its namespace and the labels that it asks for.
	selects() (id, namespace string, selector map[string]string)
}

// targeting is what may be for the pods behind some Services of its namespace alone.
type targeting interface {
	targets() []string // names of them; none: it is for all that it selects
}

// bySelector finds what selects pods by its namespace and one label that it asks for, the first in the order of the alphabet; what asks for
// none, by its namespace alone. Who has a pod's labels then looks at what one of these may find, and not at all that is in the namespace.
var bySelector = &memdb.IndexSchema{Name: "selector", Indexer: selectors{}}

// selectors implements memdb.SingleIndexer.
type selectors struct{}

func (selectors) FromObject(o any) (ok bool, key []byte, err error) {
	s, ok := o.(selecting)
	if !ok {
		return false, nil, fmt.Errorf("%T selects no pods", o)
	}
	_, namespace, selector := s.selects()
	first := firstLabel(selector)
	return true, labelled(namespace, first, selector[first]), nil
}

func (selectors) FromArgs(args ...any) ([]byte, error) { return labels{}.FromArgs(args...) }

// firstLabel is the one of a selector's labels by which an index finds it, or is looked into for it; empty if there is none.
func firstLabel(selector map[string]string) string {
	if len(selector) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(selector)))
}

// selectingPods returns the objects of a namespace that select pods with the labels, in the order of their IDs. What has no selector does.
func selectingPods[T any](s *Snapshot, k *KindOf[T], namespace string, of map[string]string) []*T {
	type found struct {
		id     string
		object *T
	}
	var all []found
	look := func(key, value string) {
		for o := range k.all(s, bySelector.Name, namespace, key, value) {
			if id, _, selector := any(o).(selecting).selects(); authz.Selects(selector, of) {
				all = append(all, found{id, o})
			}
		}
	}
	look("", "")
	for key, value := range of {
		look(key, value)
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.id, b.id) })
	out := make([]*T, len(all))
	for i, f := range all {
		out[i] = f.object
	}
	return out
}
