package chart

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// What is said beside a request's headers comes to Pilot as it is written, whatever YAML would make of it.
func TestAuthorizersComeToPilotAsTheyAreWritten(t *testing.T) {
	const odd = "a: b #c \"d\" 'e' {{f}} \\n <g>& | %s é"
	text, err := json.Marshal(map[string]any{"extensionProviders": []any{map[string]any{"name": "web",
		"envoyExtAuthzHttp": map[string]any{"service": "web.a.svc.cluster.local", "port": 80, "timeout": "1s", "includeAdditionalHeadersInCheck": map[string]any{"x-odd": odd}}}}})
	if err != nil {
		t.Fatal(err)
	}
	values, err := Values(nil, []string{"-"}, nil, strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := All(values, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() != "Deployment" || o.GetName() != mesh.PilotAccount {
			continue
		}
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		if err != nil {
			t.Fatal(err)
		}
		args, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
		if err != nil {
			t.Fatal(err)
		}
		for _, arg := range args {
			if providers, ok := strings.CutPrefix(arg, "--extension-providers="); ok {
				got, err := authorizer.Parse(providers)
				if err != nil || len(got) != 1 || got[0].AdditionalHeaders["x-odd"] != odd {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
		}
	}
	t.Error("Pilot is told of no authorizer")
}
