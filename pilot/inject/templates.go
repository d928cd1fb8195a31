package inject

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	applypatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
)

// maxAdvice bounds how many warnings one answer has.
const maxAdvice = 10

// Templates tells the authors of controllers what injection would tell of their pods, and would refuse in them: of pods that a controller makes nobody reads warnings, and
// what is refused is found out late. Nothing is refused here.
func Templates(c Config, labels func(ctx context.Context, namespace string) (map[string]string, error)) admission.Func {
	return func(ctx context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		known, err := labels(ctx, req.Namespace)
		if err != nil {
			return admission.Allow()
		}
		_, v, err := Object(req.Object.Raw, Namespace{Name: req.Namespace, Labels: known}, c)
		if err != nil {
			return admission.Allow()
		}
		advice := v.Advice
		if v.Refused != "" {
			advice = append([]string{"its pods will be refused: " + v.Refused}, advice...)
		}
		return admission.Allow(advice[:min(maxAdvice, len(advice))]...)
	}
}

// places are where objects have the pods that they make, the most special first.
var places = [][]string{{"spec", "jobTemplate", "spec", "template"}, {"spec", "template"}}

// Object does with an object in JSON what the webhook would do with its pod, or with the pods that it makes: it returns the object with their proxies. An object that makes no
// pods is left alone.
func Object(object []byte, ns Namespace, c Config) ([]byte, Verdict, error) {
	var o map[string]any
	if err := json.Unmarshal(object, &o); err != nil {
		return nil, Verdict{}, fmt.Errorf("decoding the object: %w", err)
	}
	if o["kind"] == "Pod" {
		return inObject(object, ns, c)
	}
	for _, place := range places {
		template, ok := at(o, place)
		if !ok {
			continue
		}
		text, err := json.Marshal(template)
		if err != nil {
			return nil, Verdict{}, fmt.Errorf("encoding the template: %w", err)
		}
		with, v, err := inObject(text, ns, c)
		if err != nil {
			return nil, Verdict{}, fmt.Errorf("%s: %w", strings.Join(place, "."), err)
		}
		var changed map[string]any
		if err := json.Unmarshal(with, &changed); err != nil {
			return nil, Verdict{}, fmt.Errorf("decoding the template: %w", err)
		}
		parent, _ := at(o, place[:len(place)-1])
		parent[place[len(place)-1]] = changed
		out, err := json.Marshal(o)
		return out, v, err
	}
	return object, Verdict{LeftAlone: "it makes no pods"}, nil
}

// at follows names into an object.
func at(o map[string]any, names []string) (map[string]any, bool) {
	for _, name := range names {
		next, ok := o[name].(map[string]any)
		if !ok {
			return nil, false
		}
		o = next
	}
	return o, true
}

// inObject is injection into a pod, or into a template, which is a pod without a name.
func inObject(text []byte, ns Namespace, c Config) ([]byte, Verdict, error) {
	var pod core.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		return nil, Verdict{}, fmt.Errorf("decoding the pod: %w", err)
	}
	v := decide(&pod, ns, c)
	if v.patch == nil {
		return text, v, nil
	}
	patch, err := applypatch.DecodePatch(v.patch)
	if err != nil {
		return nil, v, fmt.Errorf("decoding the patch: %w", err)
	}
	out, err := patch.ApplyWithOptions(text, &applypatch.ApplyOptions{EnsurePathExistsOnAdd: true, SupportNegativeIndices: true, AccumulatedCopySizeLimit: 1 << 20})
	if err != nil {
		return nil, v, fmt.Errorf("applying the patch: %w", err)
	}
	return out, v, nil
}
