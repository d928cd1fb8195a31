// Package validate refuses policies that could not be enforced as they are written, and tells authors, also of Services, what holds otherwise than
// they may think.
package validate

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// maxAdvice bounds how many warnings one answer has.
const maxAdvice = 10

// Objects answers reviews of every kind of objects that Pilot knows. Only policies are ever refused.
func Objects(options authz.Options) admission.Func {
	return func(_ context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		kind := registry.KindOfObject(req.Kind.Kind)
		if kind == nil || !kind.IsPolicy() && !kind.IsAdvised() || req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
			return admission.Allow()
		}
		unreadable := unreadable
		if kind.IsAdvised() {
			unreadable = func(*admissionv1.AdmissionRequest, error) *admissionv1.AdmissionResponse { return admission.Allow() }
		}
		// The object is made into what it would be if it were stored, so that admission refuses just what could not be enforced then.
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(req.Object.Raw, &u.Object); err != nil {
			return unreadable(req, err)
		}
		u.SetNamespace(req.Namespace)
		u.SetName(req.Name)
		made, err := kind.Event(u, options)
		if err != nil {
			return unreadable(req, err)
		}
		if v, _ := kind.Verdict(made.Object); len(v.Problems) > 0 {
			return admission.Deny(fmt.Sprintf("%s %s/%s cannot be enforced: %s", req.Kind.Kind, req.Namespace, req.Name, v.Summary()))
		}
		advice := kind.Advice(made.Object)
		return admission.Allow(advice[:min(maxAdvice, len(advice))]...)
	}
}

func unreadable(req *admissionv1.AdmissionRequest, err error) *admissionv1.AdmissionResponse {
	return admission.Deny(fmt.Sprintf("%s %s/%s cannot be read: %s", req.Kind.Kind, req.Namespace, req.Name, err))
}
