package explain

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Held is the rules that a configuration of Envoy has, by their names, each with digests of the forms in which it is there (for requests, for connections, in parts).
type Held map[string]map[string]bool

// ruleName is how rules of policies are named in Envoy; see istiocompat.PolicyRule.
var ruleName = regexp.MustCompile(`^ns\[[^\]]*\]-policy\[[^\]]*\]-rule\[\d+\]$`)

// HeldIn finds the rules in what Envoy says of its configuration (config_dump), or Pilot of what it sends (/v1/config): whether fields are spelt a_b or aB does not matter.
func HeldIn(text []byte) (Held, error) {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	out := Held{}
	out.find(v)
	return out, nil
}

func (h Held) find(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			h.find(one)
		}
	case map[string]any:
		if name, ok := v["name"].(string); ok && ruleName.MatchString(name) {
			h.add(name, v)
		}
		for key, inner := range v {
			if ruleName.MatchString(key) {
				h.add(key, inner)
			}
			h.find(inner)
		}
	}
}

func (h Held) add(name string, content any) {
	text, err := json.Marshal(camel(content))
	if err != nil {
		return // it comes from JSON
	}
	sum := sha256.Sum256(text)
	if h[name] == nil {
		h[name] = map[string]bool{}
	}
	h[name][hex.EncodeToString(sum[:8])] = true
}

// camel spells the fields of a message as protobuf's JSON does, and leaves out what says nothing.
func camel(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, one := range v {
			out[i] = camel(one)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			parts := strings.Split(key, "_")
			for i, p := range parts[1:] {
				if p != "" && !strings.Contains(key, "[") {
					parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
				}
			}
			glue := ""
			if strings.Contains(key, "[") { // a name, and no field
				glue = "_"
			}
			out[strings.Join(parts, glue)] = camel(inner)
		}
		return out
	}
	return v
}

// HeldRule is a rule, and who has it.
type HeldRule struct {
	Rule   string       `json:"rule"` // <namespace>/<name> rule <n>
	Action authz.Action `json:"action,omitempty"`
	Wanted bool         `json:"wanted"` // by the policies
	Sent   bool         `json:"sent"`   // by Pilot
	Held   bool         `json:"held"`   // by Envoy
	Other  bool         `json:"other"`  // Envoy's is another than Pilot's
}

// Good reports whether all agree.
func (r HeldRule) Good() bool { return r.Wanted == r.Sent && r.Sent == r.Held && !r.Other }

// Compare says of each rule whether the policies have it, Pilot sends it and Envoy holds it.
func (m *Mesh) Compare(namespace, pod string, sent, held Held) ([]HeldRule, error) {
	p := m.snap.Pod(namespace + "/" + pod)
	if p == nil {
		return nil, fmt.Errorf("there is no pod %s/%s that runs", namespace, pod)
	}
	rows := map[string]*HeldRule{}
	row := func(id string) *HeldRule {
		if rows[id] == nil {
			rows[id] = &HeldRule{Rule: id}
		}
		return rows[id]
	}
	scope := m.compiled(m.workload(p)).Policies
	for _, p := range scope {
		for _, r := range p.Rules {
			if !p.Ignored && !r.Never {
				x := row(istiocompat.PolicyRule(p.Namespace, p.Name, r.Index))
				x.Wanted, x.Action = true, p.Action
			}
		}
	}
	own := []string{rbac.PlaintextRule} // that nobody writes: Pilot adds them where they are needed
	for _, a := range authz.Ambiguities {
		own = append(own, a.Rule)
	}
	for _, id := range own {
		if sent[id] != nil {
			row(id).Wanted = true
		}
	}
	for id := range sent {
		row(id).Sent = true
	}
	for id := range held {
		row(id).Held = true
	}
	out := []HeldRule{}
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		r := *rows[id]
		r.Other = r.Sent && r.Held && !maps.Equal(sent[id], held[id])
		r.Rule = authz.Short(scope, id)
		out = append(out, r)
	}
	return out, nil
}
