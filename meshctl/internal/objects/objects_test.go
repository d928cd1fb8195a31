package objects

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
)

func TestObjectsOfFilesAndFolders(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", "# nothing but a comment\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\n\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n")
	write("deep/er/b.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"shop"}},{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"}}]}`)
	write("notes.txt", "no object")
	found, err := InFiles([]string{dir, "-"}, strings.NewReader("apiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: shop}\r\n"), "here")
	var names []string
	for _, o := range found {
		names = append(names, kube.Describe(o))
	}
	if want := []string{"Service here/web", "Node node-1", "Pod shop/p", "Pod here/q", "Namespace shop"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v, want %v", names, err, want)
	}
	for text, want := range map[string]string{
		"a: [":         "document 1",
		"kind: Pod":    "no apiVersion",
		"- kind: Pod":  "document 1",
		"plain words":  "document 1",
		"\x00\x01\x02": "document 1",
	} {
		write("bad/x.yaml", text)
		if _, err := InFiles([]string{filepath.Join(dir, "bad")}, nil, "here"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "x.yaml") {
			t.Errorf("%q: %v, want one that names the file and says %q", text, err, want)
		}
	}
	if _, err := InFiles([]string{filepath.Join(dir, "none")}, nil, "here"); err == nil {
		t.Error("a folder that is not there is no error")
	}
}
