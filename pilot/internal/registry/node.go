package registry

import core "k8s.io/api/core/v1"

// Nodes are the cluster's nodes, of which only the zone is of interest: some endpoints are meant for clients of a zone.
var Nodes = &KindOf[Node]{
	name:     "node",
	resource: Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("nodes"), Kind: "Node"},
	source: typed(trimNode, func(n *core.Node) *Node {
		return &Node{ID: n.Name, Zone: n.Labels[core.LabelTopologyZone]}
	}),
}

// Node is a node.
type Node struct {
	ID   string
	Zone string // or empty
}

// trimNode keeps little, as nodes say much, and often.
func trimNode(n *core.Node) {
	zone, labelled := n.Labels[core.LabelTopologyZone]
	n.Annotations, n.Labels, n.Spec, n.Status = nil, nil, core.NodeSpec{}, core.NodeStatus{}
	if labelled {
		n.Labels = map[string]string{core.LabelTopologyZone: zone}
	}
}

// ZoneOf returns the zone of a node, empty if none is known.
func (s *Snapshot) ZoneOf(node string) string {
	if n := Nodes.one(s, node); n != nil {
		return n.Zone
	}
	return ""
}
