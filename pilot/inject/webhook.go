package inject

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Pods answers reviews of pods that are created. config returns what holds now, labels a namespace's labels, ranges what its LimitRanges demand.
func Pods(config func() Config, labels func(ctx context.Context, namespace string) (map[string]string, error), ranges func(namespace string) []core.LimitRangeItem, log *slog.Logger) admission.Func {
	return func(ctx context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if req.Operation != admissionv1.Create || req.Kind.Kind != "Pod" || req.SubResource != "" {
			return admission.Allow()
		}
		var pod core.Pod
		if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
			return admission.Deny(fmt.Sprintf("decoding the pod: %v", err))
		}
		known, err := labels(ctx, req.Namespace)
		if err != nil {
			return admission.Deny(err.Error())
		}
		switch v := decide(&pod, Namespace{req.Namespace, known, ranges(req.Namespace)}, config()); {
		case v.LeftAlone != "":
			log.Debug("pod gets no proxy", "namespace", req.Namespace, "pod", pod.Name+pod.GenerateName, "reason", v.LeftAlone)
			return admission.Allow()
		case v.Refused != "":
			return admission.Deny(v.Refused)
		default:
			kind := admissionv1.PatchTypeJSONPatch
			return &admissionv1.AdmissionResponse{Allowed: true, Patch: v.patch, PatchType: &kind, Warnings: v.Advice}
		}
	}
}

// Namespace is what of a pod's namespace matters.
type Namespace struct {
	Name   string
	Labels map[string]string
	Ranges []core.LimitRangeItem // what its LimitRanges demand
}

// Verdict is what injection does with a pod. If neither LeftAlone nor Refused says why not, the pod gets a proxy.
type Verdict struct {
	LeftAlone string   `json:"leftAlone,omitempty"`
	Refused   string   `json:"refused,omitempty"`
	Advice    []string `json:"advice,omitempty"` // what its author is told
	patch     []byte
}

// decide is injection, of a pod as it was sent.
func decide(pod *core.Pod, ns Namespace, c Config) Verdict {
	if why := skipReason(pod, ns.Name, ns.Labels); why != "" {
		return Verdict{LeftAlone: why}
	}
	refused := func(why string) Verdict { return Verdict{Refused: why} }
	way, err := deliveryOf(pod, ns.Labels)
	if err != nil {
		return refused(err.Error())
	}
	if err := checkChoices(pod); err != nil {
		return refused(err.Error())
	}
	if why := runsAsProxy(pod); why != "" {
		return refused(why)
	}
	ch, err := choose(pod)
	if err != nil {
		return refused(err.Error())
	}
	if pod.Annotations[mesh.ProxyProtocolAnnotation] != "" && !c.LoadBalancers {
		ch.advise("annotation %s has no effect: the installation names no load balancers that are to be believed (meshctl install --set 'loadBalancers={10.0.0.0/24}')", mesh.ProxyProtocolAnnotation)
	}
	patch, err := patch(pod, ns.Name, way, ch, ns.Ranges, c)
	if err != nil {
		return refused(fmt.Sprintf("adding the proxy: %v", err))
	}
	return Verdict{Advice: ch.advice, patch: patch}
}

// patch is what makes the pod as it was sent into the pod with its proxy. Fields that this version of the API does not know
// are left alone: the difference is that of two encodings of what is known, and containers are added, not moved.
func patch(pod *core.Pod, namespace string, delivery delivery.Way, ch choices, ranges []core.LimitRangeItem, c Config) ([]byte, error) {
	with, first, err := apply(pod, namespace, delivery, ch, ranges, c)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("encoding the pod: %w", err)
	}
	after, err := json.Marshal(with)
	if err != nil {
		return nil, fmt.Errorf("encoding the pod: %w", err)
	}
	ops, err := jsonpatch.CreatePatch(before, after)
	if err != nil {
		return nil, fmt.Errorf("making the patch: %w", err)
	}
	for i := range ops { // a service that is not there is encoded as null, and what is not there cannot be replaced
		if strings.HasSuffix(ops[i].Path, "/grpc/service") {
			ops[i].Operation = "add"
		}
	}
	slices.SortStableFunc(ops, func(a, b jsonpatch.Operation) int { return cmp.Compare(a.Path, b.Path) })
	if len(pod.Spec.InitContainers) == 0 {
		ops = append(ops, jsonpatch.NewOperation("add", "/spec/initContainers", first))
	} else {
		for _, container := range slices.Backward(first) {
			ops = append(ops, jsonpatch.NewOperation("add", "/spec/initContainers/0", container))
		}
	}
	out, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encoding the patch: %w", err)
	}
	return out, nil
}
