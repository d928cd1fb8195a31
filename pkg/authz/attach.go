package authz

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
