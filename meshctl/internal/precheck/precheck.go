// Package precheck finds what would make an installation fail before anything is changed.
package precheck

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// MinimumKubernetes is the oldest version whose sidecar containers and token bindings Bulwark can rely on.
const MinimumKubernetes = "1.33.0"

// Version fails on a cluster that is too old.
func Version(c kubernetes.Interface) error {
	info, err := c.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("asking the cluster's version: %w", err)
	}
	got, err := version.ParseSemantic(info.GitVersion)
	if err != nil {
		return fmt.Errorf("the cluster's version %q cannot be read: %w", info.GitVersion, err)
	}
	if got.LessThan(version.MustParseSemantic(MinimumKubernetes)) {
		return fmt.Errorf("the cluster runs Kubernetes %s; Bulwark needs %s or newer: upgrade the cluster", info.GitVersion, MinimumKubernetes)
	}
	return nil
}

// Rights fails when the caller may not do what an installation does.
func Rights(ctx context.Context, c kubernetes.Interface) error {
	needs := []authorizationv1.ResourceAttributes{
		{Verb: "create", Resource: "namespaces"},
		{Verb: "patch", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
		{Verb: "patch", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "patch", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		{Verb: "patch", Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations"},
		{Verb: "patch", Group: "admissionregistration.k8s.io", Resource: "validatingwebhookconfigurations"},
		{Verb: "patch", Group: "storage.k8s.io", Resource: "csidrivers"},
		{Verb: "patch", Group: "apps", Resource: "deployments", Namespace: mesh.Namespace},
		{Verb: "patch", Group: "apps", Resource: "daemonsets", Namespace: mesh.Namespace},
		{Verb: "patch", Resource: "secrets", Namespace: mesh.Namespace},
	}
	var missing []string
	for _, need := range needs {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &need}}
		got, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("asking what you may do: %w", err)
		}
		if !got.Status.Allowed {
			missing = append(missing, need.Verb+" "+need.Resource)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("you may not %s; use the credentials of a cluster administrator", strings.Join(missing, ", "))
	}
	return nil
}

// OtherMesh fails beside another mesh that owns injection or the same policies.
func OtherMesh(ctx context.Context, c kubernetes.Interface) error {
	const remedy = "remove it first, or install Bulwark into another cluster: two meshes cannot both own a pod's traffic"
	hooks, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("looking for another mesh: %w", err)
	}
	for _, h := range hooks.Items {
		switch {
		case h.Labels["app"] == "sidecar-injector" || strings.HasPrefix(h.Name, "istio-"):
			return fmt.Errorf("istio owns injection here (MutatingWebhookConfiguration %s): %s", h.Name, remedy)
		case strings.HasPrefix(h.Name, "linkerd-"):
			return fmt.Errorf("linkerd owns injection here (MutatingWebhookConfiguration %s): %s", h.Name, remedy)
		}
	}
	istiod, err := c.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return fmt.Errorf("looking for another mesh: %w", err)
	}
	for _, d := range istiod.Items {
		if d.Labels["app.kubernetes.io/part-of"] != mesh.PartOfValue {
			return fmt.Errorf("istio's control plane runs here (Deployment %s/%s) and owns these policies: %s", d.Namespace, d.Name, remedy)
		}
	}
	return nil
}

// Storage fails when Mixer's claim could never be bound.
func Storage(ctx context.Context, c kubernetes.Interface, class string) error {
	classes, err := c.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("looking for a StorageClass: %w", err)
	}
	for _, s := range classes.Items {
		if s.Name == class || class == "" && s.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
			return nil
		}
	}
	if class == "" {
		return errors.New("the cluster has no default StorageClass for the audit trail; name one with --set mixer.storage.storageClass=NAME")
	}
	return fmt.Errorf("there is no StorageClass %q (mixer.storage.storageClass)", class)
}
