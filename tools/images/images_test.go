package images

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

func options(t *testing.T, built *int) Options {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pilot"), []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{
		Version: "0.1.0", Bin: dir, Out: filepath.Join(dir, "images"), Only: []string{"pilot"},
		Log: func(string, ...any) { *built++ },
	}
}

func digest(t *testing.T, opts Options) string {
	t.Helper()
	entries, err := oci.List(Archive(opts.Out, "pilot"))
	if err != nil {
		t.Fatal(err)
	}
	if entries[0].Ref != "docker.io/bulwark/pilot:0.1.0" {
		t.Errorf("named %s", entries[0].Ref)
	}
	return entries[0].Digest
}

func TestImageIsBuiltAnewOnlyWhenItsInputsChanged(t *testing.T) {
	built := 0
	opts := options(t, &built)
	step := func(name string, want int) string {
		t.Helper()
		if err := Build(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if built != want {
			t.Errorf("%s: built %d times in all, want %d", name, built, want)
		}
		return digest(t, opts)
	}
	first := step("first", 1)
	step("unchanged", 1)
	binary := filepath.Join(opts.Bin, "pilot")
	if err := os.Chtimes(binary, time.Time{}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := step("same bytes, later", 2); got != first {
		t.Error("the same bytes gave another digest")
	}
	if err := os.WriteFile(binary, []byte("two and more"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := step("other bytes", 3); got == first {
		t.Error("other bytes gave the same digest")
	}
}

func TestMissingBinaryAndUnknownImageAreNamed(t *testing.T) {
	built := 0
	opts := options(t, &built)
	for _, name := range []string{"citadel", "nonsense"} {
		opts.Only = []string{name}
		if err := Build(t.Context(), opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPushedImageIsTheBuiltOne(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	built := 0
	opts := options(t, &built)
	if err := Build(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(server.URL, "http://")
	if err := Push(t.Context(), host+"/mesh", opts); err != nil {
		t.Fatal(err)
	}
	config, err := crane.Config(host + "/mesh/pilot:0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), `"User":"65532:65532"`) {
		t.Errorf("configuration: %s", config)
	}
}
