package world

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// Change is a change of one object that proxies hear of.
type Change struct {
	Marker  string // what is in resources then and never before
	Affects func(fleet.Member) bool
	Make    func(context.Context) error
}

// EndpointChange gives the n-th target another address, which every proxy must hear of that may call the service.
func (w *World) EndpointChange(n int) Change {
	target, address := w.target(n), changedAddress(n+1)
	return Change{
		Marker: address, Affects: w.mayCall(target),
		Make: func(ctx context.Context) error {
			patch, err := json.Marshal(map[string]any{"endpoints": []map[string]any{{"addresses": []string{address}}}})
			if err != nil {
				return err
			}
			_, err = w.kube.DiscoveryV1().EndpointSlices(w.namespaceOf(target)).Patch(ctx, serviceName(target),
				types.MergePatchType, patch, meta.PatchOptions{})
			return err
		},
	}
}

// mayCall says which pods may call the service of a workload.
func (w *World) mayCall(workload int) func(fleet.Member) bool {
	if workload >= w.guarded() {
		return func(fleet.Member) bool { return true }
	}
	var names []string
	for _, c := range w.callers(workload) {
		names = append(names, workloadName(c))
	}
	return func(m fleet.Member) bool { return slices.Contains(names, m.Workload) }
}

// WorkloadPolicyChange gives the policy of one of the workloads with proxies another path.
func (w *World) WorkloadPolicyChange(n int) Change {
	workload, path := n%min(w.simulated(), w.guarded()), fmt.Sprintf("/changed-workload-%06d", n)
	return Change{
		Marker: path, Affects: func(m fleet.Member) bool { return m.Workload == workloadName(workload) },
		Make: func(ctx context.Context) error {
			return w.changeRules(ctx, w.namespaceOf(workload), workloadName(workload), w.allow(workload, path))
		},
	}
}

// NamespacePolicyChange gives the policy of a namespace another path.
func (w *World) NamespacePolicyChange(n int) Change {
	namespace, path := namespaceName(n%w.Namespaces), fmt.Sprintf("/changed-namespace-%06d", n)
	return Change{
		Marker: path, Affects: func(m fleet.Member) bool { return m.Namespace == namespace },
		Make: func(ctx context.Context) error { return w.changeRules(ctx, namespace, namespacePolicy, deny(path)) },
	}
}

func (w *World) changeRules(ctx context.Context, namespace, name string, rule map[string]any) error {
	return w.change(ctx, authorizationPolicies, namespace, name, "rules", []any{rule})
}

// change gives a field of a policy another list.
func (w *World) change(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, field string, list []any) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{field: list}})
	if err != nil {
		return err
	}
	_, err = w.dynamic.Resource(gvr).Namespace(namespace).Patch(ctx, name, types.MergePatchType, patch, meta.PatchOptions{})
	return err
}
