package chart

import (
	"strings"
	"testing"
)

func TestUnknownSettingIsNamed(t *testing.T) {
	for _, set := range []string{"citadel.workloadTLL=1h", "mtls=maybe", "nothing=1"} {
		values, err := Values(nil, nil, []string{set}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Render(values)
		key := set[strings.LastIndex(set[:strings.Index(set, "=")], ".")+1 : strings.Index(set, "=")]
		if err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "\n") {
			t.Errorf("--set %s: got %v, want one line that names %s", set, err, key)
		}
	}
}

func TestStrictRendersAMeshWidePolicy(t *testing.T) {
	count := func(set ...string) (n int) {
		values, err := Values(nil, nil, set, nil)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := Render(values)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if o.GetKind() == "PeerAuthentication" {
				n++
			}
		}
		return n
	}
	if count() != 0 || count("mtls=strict") != 1 {
		t.Fatal("a PeerAuthentication is rendered exactly with mtls=strict")
	}
}

// The privileges that the design gives each component, as its chart grants them.
func TestPilotReadsNoSecretAndMixerSignsNothing(t *testing.T) {
	objects, err := Render(map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if !strings.HasSuffix(o.GetKind(), "Role") {
			continue
		}
		rules, _ := o.Object["rules"].([]any)
		for _, r := range rules {
			rule := r.(map[string]any)
			resources, _ := rule["resources"].([]any)
			for _, resource := range resources {
				switch {
				case resource == "*":
					t.Errorf("%s %s has a wildcard", o.GetKind(), o.GetName())
				case resource == "secrets" && o.GetName() != "bulwark-citadel" && (o.GetName() != "bulwark-mixer" || o.GetKind() != "Role" || rule["resourceNames"] == nil):
					t.Errorf("%s %s may touch Secrets", o.GetKind(), o.GetName())
				case strings.Contains(resource.(string), "authorizationpolicies") && o.GetName() != "bulwark-pilot":
					t.Errorf("%s %s may touch policies", o.GetKind(), o.GetName())
				}
			}
		}
	}
}
