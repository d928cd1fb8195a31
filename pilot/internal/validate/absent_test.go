package validate

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// odd are values of JSON that may be where a field is, whatever it is.
var odd = []any{nil, map[string]any{}, []any{}, []any{nil}, []any{map[string]any{}}, []any{[]any{}}, "", 0.0, -1e300, true, map[string]any{"": nil}}

// TestNoFieldHasToBeThere reviews objects of each kind of policy of which each field is there alone, and each is something else than it should be: null, empty, a list with nothing in it. They are made
// into what they would be if they were stored, so that none of them could end Pilot.
func TestNoFieldHasToBeThere(t *testing.T) {
	reviewed := 0
	try := func(kind string) func(spec any) {
		return func(spec any) {
			text, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s %s: %v", kind, text, p)
				}
			}()
			for _, annotations := range []string{"{}", "null"} {
				review := annotated(t, kind, "a", string(text), annotations)
				if review == nil || !review.Allowed && review.Result == nil {
					t.Errorf("%s %s: no answer", kind, text)
				}
			}
			reviewed++
		}
	}
	for kind, m := range map[string]protoreflect.ProtoMessage{"AuthorizationPolicy": &security.AuthorizationPolicy{}, "RequestAuthentication": &security.RequestAuthentication{},
		"PeerAuthentication": &security.PeerAuthentication{}, "Sidecar": &networking.Sidecar{}} {
		each(m.ProtoReflect().Descriptor(), 0, try(kind))
	}
	if reviewed < 1000 {
		t.Errorf("%d objects: hardly any field was tried", reviewed)
	}
}

// each tries a message with one field after the other, however deep, in one of the odd ways.
func each(m protoreflect.MessageDescriptor, depth int, try func(any)) {
	for _, v := range odd {
		try(v)
	}
	if depth > 6 { // some hold themselves
		return
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		in := func(v any) { try(map[string]any{f.JSONName(): v}) }
		for _, v := range odd {
			in(v)
		}
		switch {
		case f.IsMap():
			for _, v := range odd {
				in(map[string]any{"a": v})
			}
		case f.Message() != nil && f.IsList():
			each(f.Message(), depth+1, func(v any) { in([]any{v}); in([]any{v, nil}) })
		case f.Message() != nil:
			each(f.Message(), depth+1, in)
		}
	}
}
