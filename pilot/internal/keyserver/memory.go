package keyserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Memory keeps the last keys of each source in a ConfigMap, so that a Pilot that starts while a key server is away does not take them from
// proxies that verify by them. Who may write the ConfigMap could have tokens of his own be taken for good: only Pilot may, beside the cluster's administrators.
type Memory struct{ ConfigMaps corev1.ConfigMapInterface }

const (
	memoryDeadline = 5 * time.Second
	maxMemory      = 900 << 10 // bytes; the API server takes 1 MiB
	saveEvery      = time.Second
)

// remembered is a value of the ConfigMap. Its keys are hashes, as addresses have characters that those cannot.
type remembered struct {
	Source string          `json:"source"`
	Keys   json.RawMessage `json:"keys"`
}

// load returns the key sets by source. What cannot be read is left out.
func (m Memory) load(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, memoryDeadline)
	defer cancel()
	kept, err := m.ConfigMaps.Get(ctx, mesh.KeySetsConfig, meta.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %s: %w", mesh.KeySetsConfig, err)
	}
	out := map[string]string{}
	for _, text := range kept.Data {
		var r remembered
		if json.Unmarshal([]byte(text), &r) != nil {
			continue
		}
		if keys, _, err := jwt.ReadKeys(r.Keys); err == nil {
			out[r.Source] = keys.Text
		}
	}
	return out, nil
}

// save replaces what is kept.
func (m Memory) save(ctx context.Context, sets map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, memoryDeadline)
	defer cancel()
	kept, err := m.ConfigMaps.Get(ctx, mesh.KeySetsConfig, meta.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading ConfigMap %s: %w", mesh.KeySetsConfig, err)
	}
	kept.Data = map[string]string{}
	size := 0
	for source, keys := range sets {
		text, err := json.Marshal(remembered{source, json.RawMessage(keys)})
		if err != nil {
			return fmt.Errorf("encoding the keys of %s: %w", shown(source), err)
		}
		if size += len(text); size > maxMemory {
			return fmt.Errorf("key sets have more than %d bytes together", maxMemory)
		}
		sum := sha256.Sum256([]byte(source))
		kept.Data[hex.EncodeToString(sum[:])] = string(text)
	}
	if _, err := m.ConfigMaps.Update(ctx, kept, meta.UpdateOptions{FieldManager: "bulwark-pilot"}); err != nil {
		return fmt.Errorf("writing ConfigMap %s: %w", mesh.KeySetsConfig, err)
	}
	return nil
}
