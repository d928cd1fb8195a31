package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// installation is what is in a cluster before an install. A nil one is none.
type installation struct {
	remembered  map[string]any // nil if the installation was made by a meshctl that remembered nothing, or not by meshctl
	trustDomain string         // Citadel's; empty if there is no Citadel
	damaged     error          // why what is remembered cannot be read
	strict      bool           // there is a mesh-wide PeerAuthentication of the installation's
}

// installed looks at what there is; nil if there is nothing.
func installed(ctx context.Context, client *kube.Client) (*installation, error) {
	citadel, err := client.AppsV1().Deployments(mesh.Namespace).Get(ctx, "bulwark-citadel", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("looking for an installation: %w", err)
	}
	settings, settingsErr := client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.SettingsConfig, metav1.GetOptions{})
	if settingsErr != nil && !apierrors.IsNotFound(settingsErr) {
		return nil, fmt.Errorf("reading the settings of the installation: %w", settingsErr)
	}
	if apierrors.IsNotFound(err) && apierrors.IsNotFound(settingsErr) {
		return nil, nil
	}
	i := &installation{}
	if settingsErr == nil {
		i.remembered, i.damaged = chart.Remembered(settings.Data)
	}
	if citadel != nil {
		for _, container := range citadel.Spec.Template.Spec.Containers {
			for _, arg := range container.Args {
				if v, ok := strings.CutPrefix(arg, "--trustDomain="); ok {
					i.trustDomain = v
				}
			}
		}
	}
	policy := meshPolicy()
	if err := client.Get(ctx, policy); err == nil {
		i.strict = policy.GetLabels()[mesh.PartOfLabel] == mesh.PartOfValue
	} else if kube.FailureOf(err) != kube.NotFound {
		return nil, err
	}
	return i, nil
}

// meshPolicy names the policy that mtls=strict makes.
func meshPolicy() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": map[string]any{"name": "default", "namespace": mesh.Namespace},
	}}
}

// with returns the values of an install: those of before, unless they are to be forgotten, and those that are given.
func (i *installation) with(o installOptions, in io.Reader) (map[string]any, error) {
	base := map[string]any{}
	if i != nil && !o.reset {
		if i.damaged != nil {
			return nil, fmt.Errorf("%w (give all settings with --reset)", i.damaged)
		}
		base = i.remembered
	}
	return chart.Values(base, o.values, o.set, in)
}

// admits returns why an installation cannot be brought to the values.
func (i *installation) admits(values map[string]any) error {
	if i == nil || i.trustDomain == "" {
		return nil
	}
	flat, err := settled(values)
	if err != nil {
		return err
	}
	if now := flat["trustDomain"]; now != i.trustDomain {
		return fmt.Errorf("the trust domain of this mesh is %s, and cannot become %s: it is in every identity, and nobody would know anybody. "+
			"Give --set trustDomain=%s, or uninstall first", i.trustDomain, now, i.trustDomain)
	}
	return nil
}

// changes says in lines what becomes other than it was.
func (i *installation) changes(values map[string]any) []string {
	now, err := settled(values)
	if err != nil {
		return nil // rendering has said so
	}
	if i == nil {
		return given(values)
	}
	if i.remembered == nil {
		return append([]string{"what the installation was given before is not known: what is not given now is the default"}, given(values)...)
	}
	was, err := settled(i.remembered)
	if err != nil {
		was = map[string]string{} // of another version, whose settings this one does not know
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if now[key] != was[key] {
			out = append(out, fmt.Sprintf("setting %s: %s, was %s", key, now[key], was[key]))
		}
	}
	if i.strict && now["mtls"] != "strict" {
		out = append(out, "WARNING: with mtls="+now["mtls"]+" every workload without a PeerAuthentication of its own takes plaintext again")
	}
	return out
}

// given are the settings that are not the defaults.
func given(values map[string]any) []string {
	var out []string
	flat := map[string]string{}
	flatten("", values, flat)
	for _, key := range slices.Sorted(maps.Keys(flat)) {
		out = append(out, fmt.Sprintf("setting %s: %s", key, flat[key]))
	}
	return out
}

// settled returns every setting as it is with the values, by its path.
func settled(values map[string]any) (map[string]string, error) {
	defaults, err := chart.Defaults()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	flatten("", defaults, out)
	flatten("", values, out)
	return out, nil
}

func flatten(prefix string, values map[string]any, into map[string]string) {
	for key, v := range values {
		if inner, ok := v.(map[string]any); ok {
			flatten(prefix+key+".", inner, into)
			continue
		}
		into[prefix+key] = fmt.Sprint(v)
	}
}

// superfluous are the objects that the installation may have and is not to have any longer.
func (i *installation) superfluous(objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	if i == nil {
		return nil, nil
	}
	everything, err := chart.Everything()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(everything, func(o *unstructured.Unstructured) bool {
		if o.GetKind() == "PeerAuthentication" && !i.strict {
			return true // of this name there may be a user's own
		}
		return slices.ContainsFunc(objects, func(wanted *unstructured.Unstructured) bool {
			return wanted.GetKind() == o.GetKind() && wanted.GetName() == o.GetName() && wanted.GetNamespace() == o.GetNamespace()
		})
	}), nil
}
