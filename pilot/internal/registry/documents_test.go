package registry_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Whatever can be written into a policy stands in its documentation, with what holds, so that nothing is unsupported in silence: also what a later version of Istio's types adds.
func TestEveryFieldOfPoliciesIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	name := ""
	for line := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			name = strings.TrimSpace(heading)
		}
		sections[name] += line
	}
	for _, kind := range []protoreflect.MessageDescriptor{(&security.AuthorizationPolicy{}).ProtoReflect().Descriptor(), (&security.PeerAuthentication{}).ProtoReflect().Descriptor(),
		(&security.RequestAuthentication{}).ProtoReflect().Descriptor(), (&networking.ServiceEntry{}).ProtoReflect().Descriptor(), (&networking.DestinationRule{}).ProtoReflect().Descriptor()} {
		section := sections[string(kind.Name())]
		if section == "" {
			t.Errorf("docs/policies.md has no section %s", kind.Name())
			continue
		}
		documented(t, section, string(kind.Name()), kind, map[protoreflect.FullName]bool{})
	}
}

// structure are fields that only hold others.
var structure = map[string]bool{"rules": true, "from": true, "source": true, "to": true, "operation": true, "when": true, "key": true, "matchLabels": true, "mode": true, "name": true, "prefix": true,
	"header": true, "claim": true, "group": true, "kind": true, "namespace": true, "seconds": true, "nanos": true, "value": true, "jwtRules": true}

// refused are fields of which nothing is enforced, with all that they hold (TestFieldsThatAreRefusedWhole).
var refused = map[string]bool{"loadBalancer": true, "connectionPool": true, "outlierDetection": true, "tunnel": true, "proxyProtocol": true, "retryBudget": true, "workloadSelector": true}

// Each is refused by its name, also where there is nothing in it.
func TestFieldsThatAreRefusedWhole(t *testing.T) {
	n := 0
	for kind, fields := range map[registry.Kind]map[string]any{
		registry.ServiceEntries: {"workloadSelector": map[string]any{}},
		registry.DestinationRules: {"workloadSelector": map[string]any{}, "trafficPolicy": map[string]any{"loadBalancer": map[string]any{}, "connectionPool": map[string]any{}, "outlierDetection": map[string]any{},
			"tunnel": map[string]any{}, "proxyProtocol": map[string]any{}, "retryBudget": map[string]any{}}},
	} {
		e, err := kind.Event(&unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"namespace": "a", "name": "b"}, "spec": fields}}, authz.Options{})
		if err != nil {
			t.Fatal(err)
		}
		v, _ := kind.Verdict(e.Object)
		for _, p := range v.Problems {
			if name := p.Field[strings.LastIndex(p.Field, ".")+1:]; refused[name] {
				n++
			}
		}
	}
	if want := len(refused) + 1; n != want { // workloadSelector is both kinds'
		t.Errorf("%d fields are refused, want %d", n, want)
	}
}

func documented(t *testing.T, section, path string, m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	if seen[m.FullName()] {
		return
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		name := f.JSONName()
		negated := strings.ToLower(strings.TrimPrefix(name, "not")[:1]) + strings.TrimPrefix(name, "not")[1:]
		if !structure[name] && !strings.Contains(section, "`"+name) && !(strings.HasPrefix(name, "not") && strings.Contains(section, "`"+negated) && strings.Contains(section, "`not…`")) {
			t.Errorf("%s.%s is not documented", path, name)
		}
		if f.Message() != nil && !refused[name] {
			documented(t, section, path+"."+name, f.Message(), seen)
		}
	}
	for i := range m.Enums().Len() {
		values := m.Enums().Get(i).Values()
		for j := range values.Len() {
			if value := string(values.Get(j).Name()); !strings.Contains(section, value) {
				t.Errorf("%s: value %s is not documented", path, value)
			}
		}
	}
}

var namedTest = regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)`")

// What stands in the documentation as tried is tried by a test that there is.
func TestThreatsAreTriedByTestsThatThereAre(t *testing.T) {
	const root = "../../../"
	text, err := os.ReadFile(root + "docs/threats.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| ---") || strings.HasPrefix(line, "| way around") {
			continue
		}
		tests := namedTest.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 {
			t.Errorf("no test is named in %s", line)
		}
		for _, m := range tests {
			files, err := filepath.Glob(root + m[1] + "/*_test.go")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(files, func(file string) bool {
				content, err := os.ReadFile(file)
				return err == nil && strings.Contains(string(content), "\nfunc "+m[2]+"(t *testing.T) {")
			}) {
				t.Errorf("there is no %s.%s", m[1], m[2])
			}
			named++
		}
	}
	if named < 20 {
		t.Errorf("%d tests are named", named)
	}
}
