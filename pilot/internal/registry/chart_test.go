package registry_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	admission "k8s.io/api/admissionregistration/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// render returns the objects that the chart installs with its own values.
func render(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	chart, err := loader.LoadDir("../../../manifests/charts/bulwark")
	if err != nil {
		t.Fatal(err)
	}
	values, err := util.ToRenderValues(chart, nil, common.ReleaseOptions{Name: "bulwark", Namespace: mesh.Namespace}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, values)
	if err != nil {
		t.Fatal(err)
	}
	var out []*unstructured.Unstructured
	for name, text := range files {
		if !strings.HasSuffix(name, ".yaml") {
			continue // what Helm tells people
		}
		for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
			u := &unstructured.Unstructured{}
			err := d.Decode(&u.Object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			out = append(out, u)
		}
	}
	return out
}

// of returns the objects of one kind.
func of[T any](t *testing.T, objects []*unstructured.Unstructured, kind string) (out []T) {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() != kind {
			continue
		}
		var o T
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, &o, true); err != nil {
			t.Fatalf("%s %s: %v", kind, u.GetName(), err)
		}
		out = append(out, o)
	}
	return out
}

// right is one thing that an account may do. Empty, namespace and name stand for all.
type right struct{ Namespace, Group, Resource, Name, Verb string }

func rights(namespace string, rules []rbac.PolicyRule) (out []right) {
	for _, r := range rules {
		names := r.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, name := range names {
					for _, verb := range r.Verbs {
						out = append(out, right{namespace, group, resource, name, verb})
					}
				}
			}
		}
	}
	return out
}

// diff compares without regard to order.
func diff[T any](want, got []T) string {
	byText := func(a, b T) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(want, byText)
	slices.SortFunc(got, byText)
	return cmp.Diff(want, got)
}

// A kind that Pilot may not list keeps it from ever being ready, and what it may do beyond its kinds is more than it needs.
func TestChartGrantsPilotWhatItsKindsNeed(t *testing.T) {
	const account = "bulwark-pilot"
	objects := render(t)
	held := func(subjects []rbac.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbac.Subject) bool { return s.Name == account && s.Namespace == mesh.Namespace })
	}
	var got []right
	for _, binding := range of[rbac.ClusterRoleBinding](t, objects, "ClusterRoleBinding") {
		for _, role := range of[rbac.ClusterRole](t, objects, "ClusterRole") {
			if held(binding.Subjects) && binding.RoleRef.Name == role.Name {
				got = append(got, rights("", role.Rules)...)
			}
		}
	}
	for _, binding := range of[rbac.RoleBinding](t, objects, "RoleBinding") {
		for _, role := range of[rbac.Role](t, objects, "Role") {
			if held(binding.Subjects) && binding.RoleRef.Kind == "Role" && binding.RoleRef.Name == role.Name && binding.Namespace == role.Namespace {
				got = append(got, rights(role.Namespace, role.Rules)...)
			}
		}
	}
	want := []right{ // what Pilot does but watch objects and tell their authors
		{"", "events.k8s.io", "events", "", "create"},
		{"", "events.k8s.io", "events", "", "patch"},
		{"", "authentication.k8s.io", "tokenreviews", "", "create"},
		{mesh.Namespace, "", "configmaps", mesh.KeySetsConfig, "get"},
		{mesh.Namespace, "", "configmaps", mesh.KeySetsConfig, "update"},
		{mesh.Namespace, "", "configmaps", mesh.TrustBundleConfig, "get"},
		{mesh.Namespace, "", "configmaps", mesh.TrustBundleConfig, "list"},
		{mesh.Namespace, "", "configmaps", mesh.TrustBundleConfig, "watch"},
	}
	for _, k := range registry.Kinds() {
		r := k.Resource()
		for _, verb := range []string{"get", "list", "watch"} {
			want = append(want, right{r.Only.Namespace, r.Group, r.Resource, r.Only.Name, verb})
		}
		if k.IsPolicy() {
			want = append(want, right{"", r.Group, r.Resource + "/status", "", "patch"})
		}
	}
	if d := diff(want, got); d != "" {
		t.Errorf("what Pilot needs (-) and what the chart grants (+):\n%s", d)
	}
}

// review is one thing that a webhook is asked about.
type review struct{ Group, Version, Resource, Operation, Scope, Failure string }

func TestChartHasEveryPolicyReviewed(t *testing.T) {
	var got, want []review
	for _, config := range of[admission.ValidatingWebhookConfiguration](t, render(t), "ValidatingWebhookConfiguration") {
		for _, hook := range config.Webhooks {
			switch path := *hook.ClientConfig.Service.Path; {
			case path == "/advise" && *hook.FailurePolicy == admission.Ignore: // of templates of pods, which are of no kind of Pilot's
				continue
			case path != "/validate":
				t.Errorf("webhook %s asks %s", hook.Name, path)
			}
			for _, r := range hook.Rules {
				for _, group := range r.APIGroups {
					for _, version := range r.APIVersions {
						for _, resource := range r.Resources {
							for _, operation := range r.Operations {
								got = append(got, review{group, version, resource, string(operation), string(*r.Scope), string(*hook.FailurePolicy)})
							}
						}
					}
				}
			}
		}
	}
	for _, k := range registry.Kinds() {
		failure := "Fail"
		if k.IsAdvised() {
			failure = "Ignore"
		}
		if r := k.Resource(); k.IsPolicy() || k.IsAdvised() {
			// In every version, as all of them are stored as the one that Pilot reads.
			want = append(want, review{r.Group, "*", r.Resource, "CREATE", "Namespaced", failure}, review{r.Group, "*", r.Resource, "UPDATE", "Namespaced", failure})
		}
	}
	if d := diff(want, got); d != "" {
		t.Errorf("what is to be reviewed (-) and what the chart has reviewed (+):\n%s", d)
	}
}
