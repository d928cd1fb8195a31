package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// ruleFile is the part of Prometheus' format that is used here; a field that is not in it is an error.
type ruleFile struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []struct {
			Alert       string            `json:"alert"`
			Expr        string            `json:"expr"`
			For         string            `json:"for"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"rules"`
	} `json:"groups"`
}

var (
	metricName = regexp.MustCompile(`\bbulwark_[a-z0-9_]+`)
	duration   = regexp.MustCompile(`^([0-9]+[smhd])?$`)
	heading    = regexp.MustCompile(`(?m)^## ([A-Za-z]+)$`)
)

// The expressions themselves are not parsed: Prometheus' parser would bring its whole module along.
func TestEachAlertIsOfMetricsThatExistAndIsExplained(t *testing.T) {
	files, err := filepath.Glob("alerts/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("rule files %q: %v", files, err)
	}
	var file ruleFile
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var one ruleFile
		if err := yaml.UnmarshalStrict(content, &one); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		file.Groups = append(file.Groups, one.Groups...)
	}
	explained, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(explained), -1) {
		anchors["docs/alerts.md#"+strings.ToLower(m[1])] = true
	}
	sources, seen := productSources(t), map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names := metricName.FindAllString(r.Expr, -1)
			switch {
			case r.Alert == "" || seen[r.Alert]:
				t.Errorf("group %s: an alert has no name of its own: %q", g.Name, r.Alert)
			case len(names) == 0 || strings.Count(r.Expr, "(") != strings.Count(r.Expr, ")") || strings.Count(r.Expr, `"`)%2 != 0:
				t.Errorf("%s: expression %s", r.Alert, r.Expr)
			case !duration.MatchString(r.For):
				t.Errorf("%s: for %s", r.Alert, r.For)
			case r.Labels["severity"] != "critical" && r.Labels["severity"] != "warning":
				t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
			case r.Annotations["summary"] == "" || len(r.Annotations) != 2:
				t.Errorf("%s: annotations %v", r.Alert, r.Annotations)
			case !anchors[r.Annotations["runbook"]] || !strings.HasSuffix(r.Annotations["runbook"], "#"+strings.ToLower(r.Alert)):
				t.Errorf("%s: %q is not a heading of docs/alerts.md", r.Alert, r.Annotations["runbook"])
			}
			seen[r.Alert] = true
			for _, name := range names {
				if !declared(sources, name) {
					t.Errorf("%s: no source declares metric %s", r.Alert, name)
				}
			}
		}
	}
	if len(seen) < len(anchors) {
		t.Errorf("%d alerts, and docs/alerts.md explains %d", len(seen), len(anchors))
	}
}

// declared says whether a metric is made in the sources. Those of the Secret controller are put together of two parts.
func declared(sources, name string) bool {
	rest, ofSecrets := strings.CutPrefix(name, "bulwark_citadel_secrets_")
	return strings.Contains(sources, `"`+name+`"`) || (ofSecrets && strings.Contains(sources, `gauge("`+rest+`"`))
}

// productSources is the code of the components, without tests.
func productSources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, component := range []string{"agent", "citadel", "pilot", "mixer", "pkg"} {
		err := filepath.WalkDir(filepath.Join("..", component), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			all.Write(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
