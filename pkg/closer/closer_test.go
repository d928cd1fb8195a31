package closer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The module that is checked in is made of the source that is.
func TestCloserIsMadeOfItsSource(t *testing.T) {
	sums, err := os.ReadFile("source/closer.sum")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(sums)), "\n")
	for _, line := range lines {
		sum, name, _ := strings.Cut(line, "  ")
		content, err := os.ReadFile(filepath.Join("source", name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != sum {
			t.Errorf("%s is not what it was when the module was made: run make closer", name)
		}
	}
	sources, err := filepath.Glob("source/*.[ch]")
	if err != nil || len(lines) != len(sources)+1 {
		t.Errorf("%d sums of %d sources and the module, %v", len(lines), len(sources), err)
	}
}

func TestTheModuleIsWrittenOnceAndWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, File(Version))
	for _, before := range []string{"", "nothing new", "torn"} { // the pod's first start, its next one, and one after a node went down
		if before == "torn" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, Module[:100], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Write(dir); err != nil {
			t.Fatalf("%s: %v", before, err)
		}
		content, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(content, Module) {
			t.Errorf("%s: the file has %d bytes of %d, %v", before, len(content), len(Module), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o444 {
			t.Errorf("%s: mode %v, %v", before, info.Mode(), err)
		}
	}
	for _, other := range []string{"closer-0123456789abcdef01234567.wasm", "closer-123456", "agent.sock"} { // an earlier agent's, one that was killed, and what is not the module's
		if err := os.WriteFile(filepath.Join(dir, other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 || files[0].Name() != "agent.sock" {
		t.Errorf("left: %v, %v", files, err)
	}
}
