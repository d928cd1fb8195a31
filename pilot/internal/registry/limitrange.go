package registry

import (
	"github.com/hashicorp/go-memdb"
	core "k8s.io/api/core/v1"
)

// LimitRanges say what the containers of a namespace may request; injection keeps to it.
var LimitRanges = &KindOf[LimitRange]{
	name:     "limitrange",
	resource: Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("limitranges"), Kind: "LimitRange"},
	source: typed(func(r *core.LimitRange) { r.Annotations, r.Labels = nil, nil },
		func(r *core.LimitRange) *LimitRange {
			return &LimitRange{ID: IDOf(r), Namespace: r.Namespace, Items: r.Spec.Limits}
		}),
	indexes: []*memdb.IndexSchema{byNamespace},
}

// LimitRange is what one object demands.
type LimitRange struct {
	ID        string
	Namespace string
	Items     []core.LimitRangeItem
}

// LimitsIn returns what the LimitRanges of a namespace demand.
func (s *Snapshot) LimitsIn(ns string) (out []core.LimitRangeItem) {
	for r := range LimitRanges.all(s, byNamespace.Name, ns) {
		out = append(out, r.Items...)
	}
	return out
}
