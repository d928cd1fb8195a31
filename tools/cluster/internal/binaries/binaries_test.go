package binaries

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKeyChangesWithEverythingThatGoesIn(t *testing.T) {
	module := func(t *testing.T, files map[string]string) string {
		t.Helper()
		dir := t.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	base := map[string]string{"go.mod": "module a", "go.sum": "x", "main.go": "package main"}
	component := Component{Name: "a", Packages: []string{"."}}
	want, err := key(module(t, base), component)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := key(module(t, base), component); err != nil || again != want {
		t.Errorf("same inputs: got %s, %v, want %s", again, err, want)
	}
	for _, tc := range []struct {
		name      string
		files     map[string]string
		component Component
	}{
		{"go.mod", map[string]string{"go.mod": "module b", "go.sum": "x", "main.go": "package main"}, component},
		{"go.sum", map[string]string{"go.mod": "module a", "go.sum": "y", "main.go": "package main"}, component},
		{"source", map[string]string{"go.mod": "module a", "go.sum": "x", "main.go": "package main\n"}, component},
		{"another source", map[string]string{"go.mod": "module a", "go.sum": "x", "main.go": "package main", "b.go": ""}, component},
		{"no go.sum", map[string]string{"go.mod": "module a", "main.go": "package main"}, component},
		{"flags", base, Component{Name: "a", Packages: []string{"."}, LDFlags: "-X a=b"}},
		{"tags", base, Component{Name: "a", Packages: []string{"."}, Tags: "t"}},
		{"packages", base, Component{Name: "a", Packages: []string{"tool"}}},
	} {
		got, err := key(module(t, tc.files), tc.component)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got == want {
			t.Errorf("%s changed, the key did not", tc.name)
		}
	}
	if _, err := key(t.TempDir(), component); err == nil {
		t.Error("a directory without go.mod has a key")
	}
}

func TestWatchKeepsErrorsOnly(t *testing.T) {
	cache := Cache{Progress: t.Logf}
	got := cache.watch("a", strings.NewReader("go: downloading x v1\nk8s.io/api/core/v1\n# a/b\nb.go:1:2: undefined: c\n"), time.Now())
	if want := "# a/b\nb.go:1:2: undefined: c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
