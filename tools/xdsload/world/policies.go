package world

import (
	"context"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var (
	peerAuthentications   = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	authorizationPolicies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
)

var kindOf = map[schema.GroupVersionResource]string{peerAuthentications: "PeerAuthentication", authorizationPolicies: "AuthorizationPolicy"}

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

// createPolicy gives a workload its policy, and with the first workload of a namespace the namespace its own.
func (w *World) createPolicy(ctx context.Context, g int) error {
	ns := w.namespaceOf(g)
	if g < w.Namespaces {
		spec := map[string]any{"action": "ALLOW", "rules": []any{rule("/namespace", ns, g)}}
		if err := w.apply(ctx, authorizationPolicies, ns, namespacePolicy, spec); err != nil {
			return err
		}
	}
	return w.apply(ctx, authorizationPolicies, ns, groupName(g), map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"app": groupName(g)}},
		"action":   "ALLOW", "rules": []any{rule("/workload", ns, g)},
	})
}

func rule(path, namespace string, group int) map[string]any {
	return map[string]any{
		"from": []any{map[string]any{"source": map[string]any{"principals": []any{
			mesh.DefaultTrustDomain + "/ns/" + namespace + "/sa/" + groupName(group)}}}},
		"to": []any{map[string]any{"operation": map[string]any{"methods": []any{"GET"}, "paths": []any{path, "/public/*"}}}},
	}
}
