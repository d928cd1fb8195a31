package analyze

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

var update = flag.Bool("update", false, "write the golden file")

var options = authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system",
	Authorizers: []authorizer.Provider{{Name: "opa", GRPC: true, Service: "opa/opa", Port: 9191}}}

func objects(t testing.TB, text string) (out []*unstructured.Unstructured) {
	t.Helper()
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v in %s", err, document)
		}
		out = append(out, o)
	}
	return out
}

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func find(t testing.TB, in Input) []Finding {
	t.Helper()
	in.Options, in.Now = options, time.Unix(1e9, 0)
	found, err := Analyze(in)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func show(findings []Finding) string {
	var sb strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&sb, "%s %s %s %s [%s] %s\n", f.Severity, f.Code, f.Object, f.Field, f.Basis, f.Message)
	}
	return sb.String()
}

func has(findings []Finding, code string) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == code })
}

// counted is what the proxies of the examples' cluster have counted.
var counted = []Plaintext{{Namespace: "finance", ServiceAccount: "payroll", Count: 12}, {Namespace: "legacy", ServiceAccount: "batch", Count: 3}}

// section is what docs/analyze.md says of a code.
type section struct{ code, title, severity, example, instead string }

var sections = regexp.MustCompile("(?ms)^### (BW\\d+)\n\\*\\*(.*?)\\*\\* \\((.*?)\\)\n\n.*?```yaml\n(.*?)```\n```yaml\n(.*?)```\n")

func documented(t *testing.T) (out []section) {
	for _, m := range sections.FindAllStringSubmatch(read(t, "../../docs/analyze.md"), -1) {
		out = append(out, section{m[1], m[2], m[3], m[4], m[5]})
	}
	return out
}

func TestEachCodeIsDocumented(t *testing.T) {
	found := documented(t)
	if len(found) != len(Codes) {
		t.Fatalf("%d sections, %d codes", len(found), len(Codes))
	}
	for i, c := range Codes {
		if s := found[i]; s.code != c.Code || s.title != c.Title || s.severity != string(c.Severity) {
			t.Errorf("%+v is documented as %s, %s, %s", c, s.code, s.title, s.severity)
		}
		if i > 0 && Codes[i-1].Code >= c.Code {
			t.Errorf("%s is not in its order", c.Code)
		}
	}
}

// The first example of each code gives it, the second does not, and what else they give is as it was.
func TestExamples(t *testing.T) {
	world := objects(t, read(t, "testdata/world.yaml"))
	if found := find(t, Input{Cluster: world, Whole: true, Accounts: true, Plaintext: counted}); len(found) > 0 {
		t.Errorf("the world itself:\n%s", show(found))
	}
	var got bytes.Buffer
	for _, s := range documented(t) {
		for i, text := range []string{s.example, s.instead} {
			files := objects(t, text)
			found := find(t, Input{Cluster: world, Files: files, Whole: true, Accounts: true, Plaintext: counted})
			if has(found, s.code) != (i == 0) {
				t.Errorf("%s, example %d:\n%s", s.code, i+1, show(found))
			}
			for _, f := range found {
				if f.Code == s.code && f.Basis == FromConfiguration && string(f.Severity) != s.severity {
					t.Errorf("%s: %+v", s.code, f)
				}
			}
			fmt.Fprintf(&got, "# %s, example %d\n%s", s.code, i+1, show(found))
			if s.code != UnknownCode {
				for _, f := range files {
					f.SetAnnotations(map[string]string{IgnoreAnnotation: "BW0000, " + s.code, "networking.istio.io/exportTo": f.GetAnnotations()["networking.istio.io/exportTo"]})
				}
				if found := find(t, Input{Cluster: world, Files: files, Whole: true, Accounts: true, Plaintext: counted}); has(found, s.code) || !has(found, UnknownCode) {
					t.Errorf("%s, ignored, and a code that there is not:\n%s", s.code, show(found))
				}
			}
		}
	}
	golden(t, "testdata/findings.txt", got.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := read(t, name); want != string(got) {
		t.Errorf("%s is not what is found (-update writes it):\n%s", name, got)
	}
}
