package registry

import (
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

var security = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}

// PolicyRef names a policy.
type PolicyRef struct {
	Kind Kind
	ID   string // namespace/name
}

// Verdict says how much of a stored policy can be enforced, and for which workloads it is.
type Verdict struct {
	Kind       string          `json:"kind"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Generation int64           `json:"generation,omitempty"`
	Idle       bool            `json:"idle,omitempty"`   // it touches no workload, whatever it says
	Partly     bool            `json:"partly,omitempty"` // what of it can be enforced holds, and what cannot is left out
	Problems   []authz.Problem `json:"problems"`

	Selector map[string]string `json:"-"` // of pods' labels; empty: every pod that its namespace stands for
	Services []string          `json:"-"` // of its namespace, that it targets: of these pods, those behind one of them; empty: all
}

// Ref names the policy that it is on.
func (v Verdict) Ref() PolicyRef { return PolicyRef{KindOfObject(v.Kind), v.Namespace + "/" + v.Name} }

// Selects reports whether the policy is for pods of a namespace with the labels, as far as these say; root is the namespace of mesh-wide policies.
func (v Verdict) Selects(root, namespace string, labels map[string]string) bool {
	return (v.Namespace == root || v.Namespace == namespace) && authz.Selects(v.Selector, labels)
}

func verdictOn(id string, generation int64, idle bool, problems []authz.Problem) Verdict {
	namespace, name, _ := strings.Cut(id, "/")
	return Verdict{Namespace: namespace, Name: name, Generation: generation, Idle: idle, Problems: problems}
}

// Bounds of a summary.
const (
	maxProblems = 10
	maxReason   = 300 // bytes of one problem
)

// Summary lists the problems, as many and as much of each as people read.
func (v Verdict) Summary() string {
	var out []string
	for i, p := range v.Problems {
		if i == maxProblems {
			out = append(out, fmt.Sprintf("and %d more", len(v.Problems)-i))
			break
		}
		out = append(out, cut(p.Error()))
	}
	return strings.Join(out, "; ")
}

// cut bounds a text that may quote a policy's author at length.
func cut(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxReason {
		return s
	}
	n := maxReason
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// VerdictOn returns the verdict on one policy, if there is a policy of that kind and ID.
func VerdictOn(s *Snapshot, k Kind, id string) (Verdict, bool) {
	return k.Verdict(s.get(k, byID.Name, id).Next())
}

// Verdicts goes through every policy.
func Verdicts(s *Snapshot) iter.Seq2[Kind, Verdict] {
	return func(yield func(Kind, Verdict) bool) {
		for _, k := range kinds {
			if !k.IsPolicy() {
				continue
			}
			all := s.get(k, byID.Name)
			for v, ok := k.Verdict(all.Next()); ok; v, ok = k.Verdict(all.Next()) {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Unenforceable lists the policies that admission would refuse today.
func Unenforceable(s *Snapshot) []Verdict {
	out := []Verdict{}
	for _, v := range Verdicts(s) {
		if len(v.Problems) > 0 {
			out = append(out, v)
		}
	}
	return out
}

func metaOf(u *unstructured.Unstructured) authz.Meta {
	return authz.Meta{Namespace: u.GetNamespace(), Name: u.GetName(), Created: u.GetCreationTimestamp().UTC()}
}

// decodeSpec reads the spec of a custom resource strictly: a field that is not understood might have restricted something.
func decodeSpec(u *unstructured.Unstructured, into proto.Message) []authz.Problem {
	if err := unmarshalSpec(u, into, protojson.UnmarshalOptions{}); err != nil {
		// protojson varies the spaces of its messages on purpose. A message must stay the same for the same spec, because it is
		// written into the policy's status.
		return []authz.Problem{{Field: "spec", Reason: strings.ReplaceAll(err.Error(), "\u00a0", " ")}}
	}
	return nil
}

// decodeKnown reads of the spec of a custom resource what is understood, and reports whether the rest let it.
func decodeKnown(u *unstructured.Unstructured, into proto.Message) bool {
	return unmarshalSpec(u, into, protojson.UnmarshalOptions{DiscardUnknown: true}) == nil
}

func unmarshalSpec(u *unstructured.Unstructured, into proto.Message, options protojson.UnmarshalOptions) error {
	spec, ok := u.Object["spec"]
	if !ok || spec == nil {
		return nil
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return options.Unmarshal(raw, into)
}

// selectorOf finds the selector of a resource that cannot be decoded, so that its failing closed hits those it was for.
func selectorOf(u *unstructured.Unstructured) map[string]string {
	labels, _, err := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return nil
	}
	return labels
}

// notTriedOut is the problem of a policy that asks to be tried out and is of a kind that cannot be: it holds.
func notTriedOut(u *unstructured.Unstructured) []authz.Problem {
	if _, asked := u.GetAnnotations()[istiocompat.DryRunAnnotation]; !asked {
		return nil
	}
	return []authz.Problem{{Field: authz.DryRunField, Reason: "only an AuthorizationPolicy can be tried out; this would be enforced"}}
}
