package open

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The module that is checked in is made of the source that is.
func TestCloserIsMadeOfItsSource(t *testing.T) {
	sums, err := os.ReadFile("closer/closer.sum")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(sums)), "\n")
	for _, line := range lines {
		sum, name, _ := strings.Cut(line, "  ")
		content, err := os.ReadFile(filepath.Join("closer", name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != sum {
			t.Errorf("%s is not what it was when the module was made: run make closer", name)
		}
	}
	sources, err := filepath.Glob("closer/*.[ch]")
	if err != nil || len(lines) != len(sources)+1 {
		t.Errorf("%d sums of %d sources and the module, %v", len(lines), len(sources), err)
	}
}
