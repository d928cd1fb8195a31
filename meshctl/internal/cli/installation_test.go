package cli

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
)

func TestWhatAnInstallChangesIsSaid(t *testing.T) {
	strict := &installation{remembered: map[string]any{"mtls": "strict", "logLevel": "warn"}, trustDomain: "cluster.local", strict: true}
	for name, c := range map[string]struct {
		before *installation
		set    []string
		reset  bool
		says   []string
	}{
		"the first one":             {nil, []string{"mtls=strict"}, false, []string{"setting mtls: strict"}},
		"nothing":                   {strict, nil, false, nil},
		"a setting":                 {strict, []string{"citadel.replicas=2"}, false, []string{"setting citadel.replicas: 2, was 1"}},
		"strict is dropped":         {strict, []string{"mtls=permissive"}, false, []string{"setting mtls: permissive, was strict", "WARNING"}},
		"strict is taken back":      {strict, []string{"mtls=null"}, false, []string{"setting mtls: permissive, was strict", "WARNING"}},
		"all is forgotten":          {strict, nil, true, []string{"setting logLevel: info, was warn", "setting mtls: permissive, was strict", "WARNING"}},
		"by one that kept no notes": {&installation{trustDomain: "cluster.local"}, []string{"logLevel=debug"}, false, []string{"is not known", "setting logLevel: debug"}},
	} {
		values, err := c.before.with(installOptions{set: c.set, reset: c.reset}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := c.before.changes(values)
		ok := len(got) == len(c.says)
		for i := range min(len(got), len(c.says)) {
			ok = ok && strings.Contains(got[i], c.says[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}

func TestTheTrustDomainOfAMeshStays(t *testing.T) {
	there := &installation{remembered: map[string]any{"trustDomain": "example.org"}, trustDomain: "example.org"}
	for name, c := range map[string]struct {
		before *installation
		o      installOptions
		ok     bool
	}{
		"a new mesh":      {nil, installOptions{set: []string{"trustDomain=example.org"}}, true},
		"nothing said":    {there, installOptions{}, true},
		"another":         {there, installOptions{set: []string{"trustDomain=other.org"}}, false},
		"forgotten":       {there, installOptions{reset: true}, false},
		"given again":     {there, installOptions{reset: true, set: []string{"trustDomain=example.org"}}, true},
		"not remembered":  {&installation{trustDomain: "example.org"}, installOptions{}, false},
		"without Citadel": {&installation{remembered: map[string]any{}}, installOptions{set: []string{"trustDomain=example.org"}}, true},
	} {
		values, err := c.before.with(c.o, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.before.admits(values); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettingsThatCannotBeReadAreNotGuessed(t *testing.T) {
	i := &installation{damaged: errors.New("no YAML")}
	if _, err := i.with(installOptions{}, nil); err == nil || !strings.Contains(err.Error(), "--reset") {
		t.Errorf("%v", err)
	}
	if _, err := i.with(installOptions{reset: true}, nil); err != nil {
		t.Error(err)
	}
}

func TestWhatTheInstallationNoLongerHasIsDeletedAndNothingElse(t *testing.T) {
	render := func(values map[string]any) []*unstructured.Unstructured {
		objects, err := chart.Render(values)
		if err != nil {
			t.Fatal(err)
		}
		return objects
	}
	const plugin = "DaemonSet Role RoleBinding ServiceAccount"
	for name, c := range map[string]struct {
		before *installation
		values map[string]any
		want   string
	}{
		"a new mesh":       {nil, map[string]any{"cni": "off"}, ""},
		"all stays":        {&installation{strict: true}, map[string]any{"mtls": "strict", "cni": "on"}, ""},
		"strict goes":      {&installation{strict: true}, map[string]any{"cni": "on"}, "PeerAuthentication"},
		"a user's own one": {&installation{}, map[string]any{"cni": "on"}, ""},
		"the plugin goes":  {&installation{}, map[string]any{"cni": "off"}, plugin},
	} {
		gone, err := c.before.superfluous(render(c.values))
		var kinds []string
		for _, o := range gone {
			kinds = append(kinds, o.GetKind())
		}
		slices.Sort(kinds)
		if got := strings.Join(kinds, " "); err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
		}
	}
}
