package world

import (
	"context"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var (
	peerAuthentications    = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	authorizationPolicies  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	requestAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"}
)

var kindOf = map[schema.GroupVersionResource]string{peerAuthentications: "PeerAuthentication", authorizationPolicies: "AuthorizationPolicy", requestAuthentications: "RequestAuthentication"}

func (w *World) apply(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, spec map[string]any) error {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetAPIVersion(gvr.GroupVersion().String())
	u.SetKind(kindOf[gvr])
	u.SetName(name)
	u.SetLabels(map[string]string{label: value})
	_, err := w.dynamic.Resource(gvr).Namespace(namespace).Create(ctx, u, meta.CreateOptions{})
	return err
}

const namespacePolicy = "namespace"

// createNamespacePolicy gives a namespace a policy that denies something. One that allows would close all of its services.
func (w *World) createNamespacePolicy(ctx context.Context, i int) error {
	spec := map[string]any{"action": "DENY", "rules": []any{deny("/namespace")}}
	return w.apply(ctx, authorizationPolicies, namespaceName(i), namespacePolicy, spec)
}

func deny(path string) map[string]any {
	return map[string]any{"to": []any{map[string]any{"operation": map[string]any{"paths": []any{path, "/private/*"}}}}}
}

// createPolicy gives a workload a policy, which says who may call it.
func (w *World) createPolicy(ctx context.Context, workload int) error {
	return w.apply(ctx, authorizationPolicies, w.namespaceOf(workload), workloadName(workload), map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"app": workloadName(workload)}},
		"action":   "ALLOW", "rules": []any{w.allow(workload, "/workload")},
	})
}

func (w *World) allow(workload int, path string) map[string]any {
	var principals []any
	for _, c := range w.callers(workload) {
		principals = append(principals, mesh.DefaultTrustDomain+"/ns/"+w.namespaceOf(c)+"/sa/"+workloadName(c))
	}
	return map[string]any{
		"from": []any{map[string]any{"source": map[string]any{"principals": principals}}},
		"to":   []any{map[string]any{"operation": map[string]any{"methods": []any{"GET"}, "paths": []any{path, "/public/*"}}}},
	}
}
