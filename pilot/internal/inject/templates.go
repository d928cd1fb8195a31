package inject

import (
	"context"
	"encoding/json"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
)

// maxAdvice bounds how many warnings one answer has.
const maxAdvice = 10

// Templates tells the authors of controllers what injection would tell of their pods, and would refuse in them: of pods that a controller makes nobody reads warnings, and
// what is refused is found out late. Nothing is refused here.
func Templates(labels func(ctx context.Context, namespace string) (map[string]string, error)) admission.Func {
	return func(ctx context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		pod := templateOf(req.Object.Raw)
		if pod == nil {
			return admission.Allow()
		}
		namespace, err := labels(ctx, req.Namespace)
		if err != nil || skipReason(pod, req.Namespace, namespace) != "" {
			return admission.Allow()
		}
		ch, err := choose(pod)
		advice := ch.advice
		if err == nil {
			err = checkChoices(pod)
		}
		if err != nil {
			advice = append([]string{fmt.Sprintf("its pods will be refused: %v", err)}, advice...)
		}
		if why := runsAsProxy(pod); why != "" {
			advice = append([]string{"its pods will be refused: " + why}, advice...)
		}
		return admission.Allow(advice[:min(maxAdvice, len(advice))]...)
	}
}

// templateOf is the pod that a controller would make, nil if there is none in it.
func templateOf(text []byte) *core.Pod {
	type templated struct {
		Template *core.PodTemplateSpec `json:"template"`
	}
	var o struct {
		Spec struct {
			templated
			JobTemplate struct {
				Spec templated `json:"spec"`
			} `json:"jobTemplate"` // of a CronJob
		} `json:"spec"`
	}
	if json.Unmarshal(text, &o) != nil {
		return nil
	}
	for _, t := range []templated{o.Spec.templated, o.Spec.JobTemplate.Spec} {
		if t.Template != nil {
			return &core.Pod{ObjectMeta: t.Template.ObjectMeta, Spec: t.Template.Spec}
		}
	}
	return nil
}
