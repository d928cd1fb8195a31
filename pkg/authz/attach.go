package authz

import (
	"fmt"

	typev1beta1 "istio.io/api/type/v1beta1"
)

// InScope reports whether a policy applies to a workload: its own namespace's, or every namespace's when it is in the
// root namespace, and the labels its selector asks for.
func (p *Policy) InScope(rootNamespace, namespace string, labels map[string]string) bool {
	return !p.Ignored && (p.Namespace == namespace || p.Namespace == rootNamespace) && Selects(p.Selector, labels)
}

// Selects reports whether labels contain the selector.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// maxTargets bounds what one policy targets.
const maxTargets = 16

// elsewhere are the kinds of targets, by their groups, that are no workload's: their policies hold at gateways.
var elsewhere = map[string]string{"Gateway": "gateway.networking.k8s.io", "GatewayClass": "gateway.networking.k8s.io", "ServiceEntry": "networking.istio.io"}

// Targets are what a policy targets instead of selecting workloads by labels: the Services of its namespace, behind which the workloads are that it holds for, and whether there is anything
// that is not Bulwark's to enforce yet, so that it has no effect. None: it targets nothing. It is for policies of every kind.
func Targets(namespace string, selector map[string]string, one *typev1beta1.PolicyTargetReference, more []*typev1beta1.PolicyTargetReference) (services []string, others bool, problems []Problem) {
	type ref struct {
		field string
		*typev1beta1.PolicyTargetReference
	}
	var all []ref
	if one != nil {
		all = append(all, ref{"spec.targetRef", one})
	}
	for i, r := range more {
		all = append(all, ref{fmt.Sprintf("spec.targetRefs[%d]", i), r})
	}
	problem := func(field, reason string) { problems = append(problems, Problem{field, reason}) }
	switch {
	case len(all) == 0:
		return nil, false, nil
	case len(all) > maxTargets:
		problem("spec.targetRefs", fmt.Sprintf("%d targets, at most %d", len(all), maxTargets))
		return nil, true, problems
	case len(selector) > 0:
		problem("spec.targetRefs", "there is a selector, too; leave one of them out")
	case one != nil && len(more) > 0:
		problem("spec.targetRef", "there are targetRefs, too; leave one of them out")
	}
	for _, r := range all {
		switch {
		case r.GetNamespace() != "" && r.GetNamespace() != namespace:
			problem(r.field+".namespace", "is not the policy's own")
		case r.GetName() == "":
			problem(r.field+".name", "is empty")
		case r.GetKind() == "Service" && (r.GetGroup() == "" || r.GetGroup() == "core"):
			services = append(services, r.GetName())
		case elsewhere[r.GetKind()] == "" || elsewhere[r.GetKind()] != r.GetGroup():
			problem(r.field+".kind", fmt.Sprintf("%q of group %q is nothing that a policy can target", r.GetKind(), r.GetGroup()))
		default:
			others = true
		}
	}
	return services, others, problems
}
