package oci

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func spec(content string) Spec {
	return Spec{
		Files: []File{
			{Path: "/usr/bin/thing", Content: []byte(content), Mode: 0o755},
			{Path: "/tmp/", Mode: 0o1777},
			{Path: "/etc/passwd", Content: []byte("root:x:0:0::/:/bin/false\n"), Mode: 0o644},
		},
		Entrypoint: []string{"/usr/bin/thing"},
		User:       "65532:65532",
	}
}

func write(t *testing.T, content string, compress bool) (path string, bytes []byte) {
	t.Helper()
	image, err := Build(spec(content), compress)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "image.tar")
	if err := Write(path, "docker.io/bulwark/thing:1", "1", image); err != nil {
		t.Fatal(err)
	}
	if bytes, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, bytes
}

func TestEqualInputsGiveEqualArchives(t *testing.T) {
	for _, compress := range []bool{false, true} {
		_, first := write(t, "a", compress)
		_, second := write(t, "a", compress)
		if string(first) != string(second) {
			t.Errorf("compress %v: two builds of the same files differ", compress)
		}
		if _, other := write(t, "b", compress); string(first) == string(other) {
			t.Errorf("compress %v: different files give the same archive", compress)
		}
	}
}

func TestArchiveIsReadAsOCIAndAsDockerSave(t *testing.T) {
	path, _ := write(t, "a", true)
	entries, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Errorf("as docker save: %v", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" {
		t.Errorf("user is %q", config.Config.User)
	}
	if len(entries) != 1 || entries[0].Ref != "docker.io/bulwark/thing:1" {
		t.Errorf("entries: %v", entries)
	}
}

func TestListRefusesWhatIsNoArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(path, make([]byte, 1024), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := List(path); err == nil {
		t.Error("listed an empty tar")
	}
}

func TestBaseIsTheLayerBelow(t *testing.T) {
	content, err := layerTar([]File{{Path: "/bin/sh", Content: []byte("shell"), Mode: 0o755}})
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(base, content, 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec("a")
	s.Base, s.Path = base, "/sbin"
	image, err := Build(s, false)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := Write(path, "docker.io/bulwark/thing:1", "1", image); err != nil {
		t.Fatal(err)
	}
	read, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(read); err != nil {
		t.Error(err)
	}
	layers, err := read.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 2 {
		t.Fatalf("%d layers, want the base and the files", len(layers))
	}
	lowest, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer lowest.Close()
	if got, err := io.ReadAll(lowest); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the lowest layer is not the base: %v", err)
	}
	if config, err := read.ConfigFile(); err != nil || !slices.Equal(config.Config.Env, []string{"PATH=/sbin"}) {
		t.Errorf("environment %v, %v", config.Config.Env, err)
	}
}
