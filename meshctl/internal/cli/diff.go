package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
)

// showDiff shows what an install would change, setting by setting and line by line.
func (a *app) showDiff(ctx context.Context, client *kube.Client, before *installation, values map[string]any, objects, gone []*unstructured.Unstructured) error {
	for _, line := range before.changes(values) {
		a.out.Line("# %s", line)
	}
	changed := 0
	for i, object := range append(slices.Clone(objects), gone...) {
		was, now, err := outcome(ctx, client, object, i >= len(objects))
		if err != nil {
			return err
		}
		if was == now {
			continue
		}
		changed++
		name := kube.Describe(object)
		if i >= len(objects) {
			name += ", deleted"
		}
		text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
			A: difflib.SplitLines(was), B: difflib.SplitLines(now), FromFile: name + " now", ToFile: name + " then", Context: 3,
		})
		if err != nil {
			return fmt.Errorf("comparing %s: %w", name, err)
		}
		for line := range strings.Lines(text) {
			a.out.Line("%s", strings.TrimSuffix(line, "\n"))
		}
	}
	if changed == 0 {
		a.out.Line("Nothing would change.")
	}
	return a.out.Err()
}

// outcome returns an object as it is and as it would be, as YAML: nothing, if it is to be gone.
func outcome(ctx context.Context, client *kube.Client, object *unstructured.Unstructured, gone bool) (was, now string, err error) {
	live := object.DeepCopy()
	switch err := client.Get(ctx, live); {
	case err == nil:
		if was, err = shownAs(live); err != nil {
			return "", "", err
		}
	case kube.FailureOf(err) != kube.NotFound:
		return "", "", err
	}
	if gone {
		return was, "", nil
	}
	then, err := client.Outcome(ctx, object)
	if kube.FailureOf(err) == kube.NotFound {
		then, err = object, nil // its namespace or kind is not there yet
	}
	if err != nil {
		return "", "", err
	}
	now, err = shownAs(then)
	return was, now, err
}

// shownAs is an object without what the API server keeps for itself, and without secrets.
func shownAs(o *unstructured.Unstructured) (string, error) {
	o = o.DeepCopy()
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	if o.GetKind() == "Secret" {
		unstructured.RemoveNestedField(o.Object, "data")
	}
	text, err := sigsyaml.Marshal(o.Object)
	if err != nil {
		return "", fmt.Errorf("showing %s: %w", kube.Describe(o), err)
	}
	return string(text), nil
}
