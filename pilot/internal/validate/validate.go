// Package validate refuses policies that could not be enforced as they are written.
package validate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	admissionv1 "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// maxShown bounds how many problems one answer names.
const maxShown = 10

// Policies answers reviews of PeerAuthentication, AuthorizationPolicy and RequestAuthentication.
func Policies(options authz.Options) admission.Func {
	return func(_ context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
			return admission.Allow()
		}
		problems, warnings := check(req, options)
		if len(problems) == 0 {
			return admission.Allow(warnings...)
		}
		return admission.Deny(fmt.Sprintf("%s %s/%s cannot be enforced: %s", req.Kind.Kind, req.Namespace, req.Name, list(problems)))
	}
}

func list(problems []authz.Problem) string {
	var out []string
	for i, p := range problems {
		if i == maxShown {
			out = append(out, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		out = append(out, p.Error())
	}
	return strings.Join(out, "; ")
}

func check(req *admissionv1.AdmissionRequest, options authz.Options) (problems []authz.Problem, warnings []string) {
	var object struct {
		Metadata meta.ObjectMeta `json:"metadata"`
		Spec     json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(req.Object.Raw, &object); err != nil {
		return []authz.Problem{{Field: "object", Reason: err.Error()}}, nil
	}
	m := authz.Meta{Namespace: req.Namespace, Name: req.Name}
	value, set := object.Metadata.Annotations[istiocompat.DryRunAnnotation]
	if set && req.Kind.Kind != "AuthorizationPolicy" {
		return []authz.Problem{{Field: authz.DryRunField, Reason: "only an AuthorizationPolicy can be tried out; this would be enforced"}}, nil
	}
	switch req.Kind.Kind {
	case "AuthorizationPolicy":
		dry, wrong := authz.DryRun(value, set)
		m.DryRun = dry
		var spec security.AuthorizationPolicy
		if p := decode(object.Spec, &spec); p != nil {
			return p, nil
		}
		policy, problems := authz.FromAuthorizationPolicy(m, &spec, options)
		return append(wrong, problems...), advice(&policy)
	case "PeerAuthentication":
		var spec security.PeerAuthentication
		if p := decode(object.Spec, &spec); p != nil {
			return p, nil
		}
		_, problems := authz.FromPeerAuthentication(m, &spec, options)
		return problems, nil
	case "RequestAuthentication":
		return []authz.Problem{{Field: "spec.jwtRules", Reason: "JWTs are not verified yet, and an unverified rule would protect nothing"}}, nil
	}
	return nil, nil
}

func decode(spec json.RawMessage, into proto.Message) []authz.Problem {
	if len(spec) == 0 || bytes.Equal(spec, []byte("null")) {
		return nil
	}
	if err := protojson.Unmarshal(spec, into); err != nil {
		// The library varies its message on purpose; the reason after the position is what helps.
		return []authz.Problem{{Field: "spec", Reason: strings.ReplaceAll(err.Error(), "\u00a0", " ")}}
	}
	return nil
}

// advice warns of what is enforced, but maybe not as its author thinks.
func advice(p *authz.Policy) []string {
	var out []string
	for i, w := range p.Warnings {
		if i == maxShown {
			break
		}
		out = append(out, w.Error())
	}
	tcp := p.TCP()
	for i, r := range p.Rules {
		if p.Action == authz.Allow && len(tcp.Rules) < len(p.Rules) {
			out = append(out, "rules that ask for something of HTTP never match on ports that are not HTTP")
			break
		}
		if p.Action == authz.Deny && wider(r, tcp.Rules[i]) {
			out = append(out, fmt.Sprintf("spec.rules[%d]: on ports that are not HTTP what it asks of HTTP is left out, so it denies more", i))
		}
	}
	return out
}

func wider(http, tcp authz.Rule) bool {
	count := func(r authz.Rule) int {
		n := len(r.When)
		for _, c := range append(append([]authz.Clauses{}, r.From...), r.To...) {
			n += len(c)
		}
		return n
	}
	return count(tcp) < count(http)
}
