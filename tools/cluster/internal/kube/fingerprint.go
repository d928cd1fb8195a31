package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Fingerprint changes with anything that would make the cluster a different one: versions, arguments, configuration.
// extra is what else goes into it.
func (p Plan) Fingerprint(extra ...string) (string, error) {
	inputs := []any{p.ControlPlane(), extra}
	for _, node := range p.Nodes {
		inputs = append(inputs, p.Containerd(node), p.NodePrograms(node), p.NodeFiles(node), p.Binds(node))
	}
	encoded, err := json.Marshal(inputs)
	if err != nil {
		return "", fmt.Errorf("take the plan's fingerprint: %w", err)
	}
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:8]), nil
}
