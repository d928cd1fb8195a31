package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Every mutation must still have its place in the source, or the run would stop at it.
func TestMutationsHaveTheirPlace(t *testing.T) {
	for _, m := range mutations {
		for _, e := range m.edits {
			content, err := os.ReadFile(filepath.Join("..", "..", "..", e.file))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(content, []byte(e.old)); n != 1 {
				t.Errorf("claim %d (%s): %s has %q %d times, want once", m.claim, m.what, e.file, e.old, n)
			}
		}
	}
}
