package kube

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Established reports whether the API server serves a CRD, and is not about to remove it.
func (c *Client) Established(ctx context.Context, name string) (bool, error) {
	crd, err := c.Dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("reading CRD %s: %w", name, err)
	}
	if crd.GetDeletionTimestamp() != nil {
		return false, nil
	}
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, condition := range conditions {
		m, _ := condition.(map[string]any)
		if m["type"] == "Established" && m["status"] == "True" {
			return true, nil
		}
	}
	return false, nil
}

// Instances counts the objects of a CRD in the whole cluster; zero when the CRD is not there.
func (c *Client) Instances(ctx context.Context, crd *unstructured.Unstructured) (int, error) {
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
	if _, err := c.mapper.RESTMapping(schema.GroupKind{Group: group, Kind: kind}, "v1"); err != nil {
		return 0, nil
	}
	list, err := c.Dynamic.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("counting %s: %w", crd.GetName(), err)
	}
	return len(list.Items), nil
}

// DryRun applies an object through the API server and its webhooks without keeping it.
func (c *Client) DryRun(ctx context.Context, o *unstructured.Unstructured) error {
	return c.apply(ctx, o, metav1.ApplyOptions{FieldManager: mesh.FieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
}
