package registry

import core "k8s.io/api/core/v1"

// Namespaces are the namespaces.
var Namespaces = &KindOf[Namespace]{
	name:     "namespace",
	resource: Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("namespaces"), Kind: "Namespace"},
	source: typed(func(n *core.Namespace) { n.Annotations = nil },
		func(n *core.Namespace) *Namespace { return &Namespace{ID: n.Name, Labels: n.Labels} }),
}

// Namespace is a namespace.
type Namespace struct {
	ID     string
	Labels map[string]string
}

// Namespace returns a namespace, or nil.
func (s *Snapshot) Namespace(name string) *Namespace { return Namespaces.one(s, name) }
