package agents

import (
	"fmt"
	"path/filepath"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// Settings of some agents.
type Settings struct {
	Pilot string `json:"pilot"` // its address
	Roots []byte `json:"roots"` // PEM
	Nodes []Node `json:"nodes"`
}

// Node is a node, with its agent's SVID.
type Node struct {
	Name  string `json:"name"`
	Chain []byte `json:"chain"` // PEM
	Key   []byte `json:"key"`   // PEM
	Pods  []Pod  `json:"pods"`
}

// Pod is one with a socket.
type Pod struct {
	UID    string `json:"uid"`
	Name   string `json:"name"` // namespace/name
	Socket string `json:"socket"`
	Chain  []byte `json:"chain"` // PEM
	Key    []byte `json:"key"`   // PEM
}

// For returns the settings of the agents of pods' nodes, and gives each pod its socket, in a directory. The first pod's has secrets on it, so that
// a real Envoy can be started with it.
func For(authority *ca.CA, pilot, dir string, members []fleet.Member) (Settings, error) {
	roots, err := authority.Bundle.Marshal()
	if err != nil {
		return Settings{}, fmt.Errorf("encoding the trust bundle: %w", err)
	}
	s := Settings{Pilot: pilot, Roots: roots}
	index := map[string]int{}
	for i := range members {
		m := &members[i]
		n, known := index[m.Node]
		if !known {
			n = len(s.Nodes)
			index[m.Node] = n
			made := Node{Name: m.Node}
			made.Chain, made.Key, err = issue(authority, mesh.Namespace, mesh.AgentAccount, spiffe.Pod{Name: "agent", UID: "agent-" + m.Node, Node: m.Node})
			if err != nil {
				return Settings{}, err
			}
			s.Nodes = append(s.Nodes, made)
		}
		m.Socket = filepath.Join(dir, fmt.Sprintf("%d.sock", i))
		pod := Pod{UID: m.UID, Name: m.Namespace + "/" + m.Pod, Socket: m.Socket}
		if i == 0 {
			if pod.Chain, pod.Key, err = issue(authority, m.Namespace, m.ServiceAccount, spiffe.Pod{}); err != nil {
				return Settings{}, err
			}
		}
		s.Nodes[n].Pods = append(s.Nodes[n].Pods, pod)
	}
	return s, nil
}

// issue returns an SVID and its key in PEM.
func issue(authority *ca.CA, namespace, account string, pod spiffe.Pod) (chain, key []byte, err error) {
	svid, err := authority.IssueTo(namespace, account, pod)
	if err != nil {
		return nil, nil, err
	}
	if chain, key, err = svid.Marshal(); err != nil {
		return nil, nil, fmt.Errorf("encoding the SVID of %s: %w", svid.ID, err)
	}
	return chain, key, nil
}
