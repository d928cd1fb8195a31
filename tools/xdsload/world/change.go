package world

import (
	"context"
	"encoding/json"
	"fmt"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// Change is a change of one object that proxies hear of.
type Change struct {
	Marker  string // what is in resources then and never before
	Affects func(fleet.Member) bool
	Make    func(context.Context) error
}

// EndpointChange gives the n-th target another address, which every proxy must hear of.
func (w *World) EndpointChange(n int) Change {
	target, address := n%w.Targets, changedAddress(n+1)
	return Change{
		Marker: address, Affects: func(fleet.Member) bool { return true },
		Make: func(ctx context.Context) error {
			patch, err := json.Marshal(map[string]any{"endpoints": []map[string]any{{"addresses": []string{address}}}})
			if err != nil {
				return err
			}
			_, err = w.kube.DiscoveryV1().EndpointSlices(w.namespaceOf(target%w.groups())).Patch(ctx, serviceName(target),
				types.MergePatchType, patch, meta.PatchOptions{})
			return err
		},
	}
}

// Scope is whom a policy is for.
type Scope string

// The scopes.
const (
	OfWorkload  Scope = "workload"  // the pods of one service account
	OfNamespace Scope = "namespace" // all of a namespace
)

// PolicyChange gives the n-th policy of a scope another path.
func (w *World) PolicyChange(s Scope, n int) Change {
	g := n % w.groups()
	name, path := groupName(g), fmt.Sprintf("/changed-%s-%06d", s, n)
	if s == OfNamespace {
		name = namespacePolicy
	}
	return Change{
		Marker: path,
		Affects: func(m fleet.Member) bool {
			return m.Namespace == w.namespaceOf(g) && (s == OfNamespace || m.Group == groupName(g))
		},
		Make: func(ctx context.Context) error {
			patch, err := json.Marshal(map[string]any{"spec": map[string]any{"rules": []any{rule(path, w.namespaceOf(g), g)}}})
			if err != nil {
				return err
			}
			_, err = w.dynamic.Resource(authorizationPolicies).Namespace(w.namespaceOf(g)).Patch(ctx, name, types.MergePatchType, patch, meta.PatchOptions{})
			return err
		},
	}
}
