package images

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPackagesOf(t *testing.T) {
	if got, want := packagesOf("# all\na # for b\n\n c\n"), []string{"a", "c"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A root file system is made once for a list of packages; a program that has changed is in an image of another tag.
func TestApplicationsUseTheKeptRoot(t *testing.T) {
	dir := t.TempDir()
	packages, program := filepath.Join(dir, "packages"), filepath.Join(dir, "program")
	for path, content := range map[string]string{packages: "a\n", program: "one"} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.Create(filepath.Join(dir, "applications-"+shortDigest(bootstrap([]string{"a"}))+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := tar.NewWriter(kept).Close(); err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	opts := ApplicationsOptions{Packages: packages, Binaries: []string{program}, Cache: dir, Archive: filepath.Join(dir, "out", "image.tar"),
		Log: func(format string, _ ...any) { t.Errorf("it makes a root file system: %s", format) }}
	build := func() string {
		t.Helper()
		tag, err := Applications(context.Background(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	first, again := build(), build()
	if err := os.WriteFile(program, []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	if other := build(); first != again || other == first || strings.ContainsAny(first, "/:") {
		t.Errorf("tags %s, %s, and %s with another program", first, again, other)
	}
}
