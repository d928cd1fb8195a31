// Package chart renders the embedded Helm chart and sorts what comes out into the order in which it is applied.
package chart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/manifests"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/config"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
	"github.com/bulwark-mesh/bulwark/pkg/settings"
	"github.com/bulwark-mesh/bulwark/pkg/version"
)

const root = "charts/bulwark"

// forHelm has the templates that do for users of Helm what meshctl does itself.
const forHelm = "/templates/helm/"

// Values merges over base files of values, in order, and then the assignments of --set. The file - is in. A null takes a value
// back to the chart's own, and is not in what is returned.
func Values(base map[string]any, files, set []string, in io.Reader) (map[string]any, error) {
	values := runtime.DeepCopyJSON(nonNil(base)) // what follows writes into maps
	for _, file := range files {
		content, err := read(file, in)
		if err != nil {
			return nil, fmt.Errorf("reading values: %w", err)
		}
		var these map[string]any
		if err := sigsyaml.UnmarshalStrict(content, &these); err != nil {
			return nil, fmt.Errorf("values file %s: %w", file, err)
		}
		values = loader.MergeMaps(values, these)
	}
	for _, s := range set {
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w", s, err)
		}
	}
	withoutNulls(values)
	return values, nil
}

func nonNil(values map[string]any) map[string]any {
	if values == nil {
		return map[string]any{}
	}
	return values
}

func read(file string, in io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(file)
}

// withoutNulls takes out what is null, and what is empty without it.
func withoutNulls(values map[string]any) {
	for key, v := range values {
		if inner, ok := v.(map[string]any); ok {
			if withoutNulls(inner); len(inner) == 0 {
				delete(values, key)
			}
		}
		if v == nil {
			delete(values, key)
		}
	}
}

// Namespace is the control plane's, which the chart leaves to whoever applies it: Helm has a flag for that. The agent mounts
// what is the node's, which the Pod Security Standards call privileged.
func Namespace() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": mesh.Namespace, "labels": map[string]any{
			mesh.PartOfLabel: mesh.PartOfValue, "pod-security.kubernetes.io/enforce": "privileged",
		}},
	}}
}

// settingsKey is where the ConfigMap has the values.
const settingsKey = "values.yaml"

// Settings is the ConfigMap in which an installation remembers the values that it was given, so that another does not have to be
// given them again.
func Settings(values map[string]any) (*unstructured.Unstructured, error) {
	content, err := sigsyaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": mesh.SettingsConfig, "namespace": mesh.Namespace, "labels": map[string]any{mesh.PartOfLabel: mesh.PartOfValue}},
		"data":     map[string]any{settingsKey: string(content)},
	}}, nil
}

// Remembered reads the values off such a ConfigMap's data.
func Remembered(data map[string]string) (map[string]any, error) {
	values := map[string]any{}
	if err := sigsyaml.UnmarshalStrict([]byte(data[settingsKey]), &values); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: %s: %w", mesh.Namespace, mesh.SettingsConfig, settingsKey, err)
	}
	return values, nil
}

// Defaults are the chart's own values.
func Defaults() (map[string]any, error) {
	chrt, err := load()
	if err != nil {
		return nil, err
	}
	return chrt.Values, nil
}

// Everything returns every object that the chart can have.
func Everything() ([]*unstructured.Unstructured, error) {
	return Render(map[string]any{"mtls": "strict", "cni": "on"})
}

// All returns every object of an installation in the order in which they are applied: the namespace, definitions, and the rest.
// It remembers the values, and is rendered with what has been decided where they leave a choice.
func All(values, decided map[string]any) ([]*unstructured.Unstructured, error) {
	objects, err := Render(loader.MergeMaps(runtime.DeepCopyJSON(nonNil(values)), decided))
	if err != nil {
		return nil, err
	}
	crds, err := CRDs()
	if err != nil {
		return nil, err
	}
	settings, err := Settings(values)
	if err != nil {
		return nil, err
	}
	all := append([]*unstructured.Unstructured{Namespace(), settings}, append(crds, objects...)...)
	sortObjects(all)
	return all, nil
}

// Render returns the objects of the chart. A value that no setting has is an error that names it.
func Render(values map[string]any) ([]*unstructured.Unstructured, error) {
	chrt, err := load()
	if err != nil {
		return nil, err
	}
	options := common.ReleaseOptions{Name: "bulwark", Namespace: mesh.Namespace, IsInstall: true}
	all, err := util.ToRenderValues(chrt, values, options, nil)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", oneLine(err))
	}
	files, err := engine.Render(chrt, all)
	if err != nil {
		return nil, fmt.Errorf("rendering the chart: %w", err)
	}
	var objects []*unstructured.Unstructured
	for name, content := range files {
		if !strings.HasSuffix(name, ".yaml") || strings.Contains(name, forHelm) {
			continue
		}
		these, err := Decode(strings.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", name, err)
		}
		objects = append(objects, these...)
	}
	sortObjects(objects)
	return objects, accepted(objects)
}

// checks are of the flags of components, by the names of their Deployments.
var checks = map[string]func(args []string) error{
	mesh.CitadelAccount: func(args []string) error {
		if _, err := config.Parse(settings.CitadelDefaults(), args); err != nil {
			return fmt.Errorf("settings: Citadel would refuse them: %w", oneLine(err))
		}
		return nil
	},
	mesh.PilotAccount: func(args []string) error {
		for _, arg := range args {
			if providers, ok := strings.CutPrefix(arg, "--extension-providers="); ok {
				if _, err := authorizer.Parse(providers); err != nil {
					return fmt.Errorf("settings: Pilot would refuse them: %w", err)
				}
			}
			if networks, ok := strings.CutPrefix(arg, "--load-balancers="); ok {
				if _, err := proxyprotocol.Networks(strings.Split(networks, ",")); err != nil {
					return fmt.Errorf("settings: Pilot would refuse them: loadBalancers: %w", err)
				}
			}
		}
		return nil
	},
}

// accepted returns why a component would not start with the flags that it is given. The checks are the components' own.
func accepted(objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		check := checks[o.GetName()]
		if o.GetKind() != "Deployment" || check == nil {
			continue
		}
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		if err != nil {
			return fmt.Errorf("rendering %s: %w", o.GetName(), err)
		}
		for _, c := range containers {
			args, _, err := unstructured.NestedStringSlice(c.(map[string]any), "args")
			if err != nil {
				return fmt.Errorf("rendering %s: %w", o.GetName(), err)
			}
			if err := check(args); err != nil {
				return err
			}
		}
	}
	return nil
}

// oneLine turns the schema validator's list into one line that names the keys.
func oneLine(err error) error {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "- "))
		if line != "" && !strings.Contains(line, "don't meet the specifications") && line != "bulwark:" {
			parts = append(parts, line)
		}
	}
	return errors.New(strings.Join(parts, "; "))
}

func load() (*chartv2.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(manifests.Chart, root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := manifests.Chart.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(path, root+"/"), Data: content})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the embedded chart: %w", err)
	}
	chrt, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("loading the embedded chart: %w", err)
	}
	chrt.Metadata.AppVersion = version.Version
	return chrt, nil
}

// CRDs returns the definitions of the kinds that Bulwark consumes.
func CRDs() ([]*unstructured.Unstructured, error) {
	chrt, err := load()
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, file := range chrt.CRDObjects() {
		these, err := Decode(bytes.NewReader(file.File.Data))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file.Name, err)
		}
		out = append(out, these...)
	}
	if len(out) == 0 {
		return nil, errors.New("this meshctl was built without the CRDs; build it with make")
	}
	return out, nil
}

// Decode reads a stream of YAML documents.
func Decode(r io.Reader) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			out = append(out, object)
		}
	}
}

// kinds in the order in which they are applied; what is not named goes between the two halves.
var (
	early = []string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding",
		"Secret", "ConfigMap", "PersistentVolumeClaim", "CSIDriver", "NetworkPolicy", "Service"}
	late = []string{"Deployment", "DaemonSet", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "PeerAuthentication"}
)

// rank of an object's kind in the order of application.
func rank(o *unstructured.Unstructured) int {
	if i := slices.Index(early, o.GetKind()); i >= 0 {
		return i
	}
	if i := slices.Index(late, o.GetKind()); i >= 0 {
		return len(early) + 1 + i
	}
	return len(early)
}

func sortObjects(objects []*unstructured.Unstructured) {
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
}
