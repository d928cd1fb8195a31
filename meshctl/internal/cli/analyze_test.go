package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const suspicious = `
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: shop, labels: {istio-injection: enabled}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web, namespace: shop}
  spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a, ports: [{containerPort: 8080}]}]}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: wbe}}
  rules: [{from: [{source: {namespaces: [shop], notNamespaces: [shop]}}]}]
`

// files are a folder as people have them: what is no object, and what is of other tools.
func analyzedFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"policies/readers.yaml": suspicious, "values.yaml": "replicas: 2\n", "kustomization.yaml": "resources: [policies/readers.yaml]\n", "README.md": "not YAML: [",
		"empty.yaml": "# nothing\n---\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAnalyzeOfFilesNeedsNoCluster(t *testing.T) {
	dir := analyzedFiles(t)
	run := func(in string, args ...string) (int, string, string) {
		var out, notes bytes.Buffer
		code := Run(t.Context(), append([]string{"analyze", "--kubeconfig", filepath.Join(dir, "no-such-file")}, args...), strings.NewReader(in), &out, &notes)
		return code, out.String(), notes.String()
	}
	code, out, notes := run("", "--offline", "-n", "shop", dir)
	for _, want := range []string{
		"error    BW0106  AuthorizationPolicy shop/readers  spec.rules[0].from[0]  (" + filepath.Join(dir, "policies/readers.yaml") + ")\n         can never match: ",
		"info     BW0101  AuthorizationPolicy shop/readers", "selects nothing, perhaps (a guess): ", "there is app=web", "1 error, 1 info in 3 objects. docs/analyze.md explains each code.",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code != 1 || !strings.Contains(notes, "values.yaml is passed over") || !strings.Contains(notes, "kustomization.yaml is passed over") || strings.Count(notes, "\n") != 2 {
		t.Errorf("status %d, notes\n%s", code, notes)
	}
	var got struct {
		Findings []struct{ Code, Severity, Basis, File, Doc string }
	}
	if code, out, _ := run(suspicious, "--offline", "--whole", "-n", "shop", "-o", "json", "-"); code != 1 || json.Unmarshal([]byte(out), &got) != nil || len(got.Findings) != 2 ||
		got.Findings[1].Code != "BW0101" || got.Findings[1].Severity != "warning" || got.Findings[1].Basis != "configuration" || got.Findings[1].Doc != "docs/analyze.md#bw0101" || got.Findings[1].File != "standard input" {
		t.Errorf("status %d, %+v\n%s", code, got, out)
	}
	for _, c := range []struct {
		args string
		code int
		want string // in what is printed or noted
	}{
		{"--offline -n shop --suppress BW0106 -", 0, "1 info in 3 objects. 1 finding left out by --suppress."},
		{"--offline -n shop --suppress BW01*=AuthorizationPolicy|shop/r* -", 0, "No findings in 3 objects. 2 findings left out"},
		{"--offline -n shop --suppress BW0106=AuthorizationPolicy|readers.shop -", 0, "1 finding left out"},
		{"--offline -n shop --suppress BW0106=AuthorizationPolicy|shop/other -", 1, "BW0106"},
		{"--offline -n shop --suppress BW0106 --failure-threshold info -", 1, "BW0101"},
		{"--offline -n shop --suppress BW0106 --failure-threshold Info --output-threshold error -", 1, "BW0101"},
		{"--offline -n shop --output-threshold error -", 1, "1 error in 3 objects"},
		{"--offline -n shop --suppress BW0106 --output-threshold warning -", 0, "No findings"},
		{"--offline -n other --suppress BW0106 -", 0, "No findings in 3 objects."},
		{"--offline -n shop -A -o yaml -", 1, "code: BW0106"},
		{"--offline", 2, "name files or folders"},
		{"--offline --suppress BW9999 -", 2, "there is no code BW9999"},
		{"--offline --suppress BW0106=readers -", 2, "name an object as KIND NAMESPACE/NAME"},
		{"--offline --failure-threshold never -", 2, "use error, warning or info"},
		{"--offline -o csv -", 2, "use table, json or yaml"},
		{"--offline --no-such-flag", 2, "unknown flag"},
		{"--whole -", 2, "give it with --offline"},
		{"--offline " + filepath.Join(dir, "nothing"), 2, "no such file"},
		{"--offline " + filepath.Join(dir, "values.yaml"), 2, "no Kubernetes object"},
		{"--offline " + filepath.Join(dir, "README.md"), 2, "README.md: document 1"},
		{"-", 2, "--offline looks at files alone"},
	} {
		args := strings.Fields(c.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "|", " ")
		}
		if code, out, notes := run(suspicious, args...); code != c.code || !strings.Contains(out+notes, c.want) {
			t.Errorf("%s: status %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, out, notes)
		}
	}
}

func TestPatternsOfObjects(t *testing.T) {
	for pattern, want := range map[string]bool{"*": true, "a*": true, "*c": true, "a*c": true, "abc": true, "*b*": true, "a*b*c": true, "ab": false, "b*": false, "*b": false, "a*d*c": false, "abc*c": false} {
		if glob(pattern, "abc") != want {
			t.Errorf("%s: %v", pattern, !want)
		}
	}
}
