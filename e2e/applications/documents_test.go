package applications

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestTheDocumentListsThePrograms: who reads docs/applications.md reads of what is tested, and of all of it.
func TestTheDocumentListsThePrograms(t *testing.T) {
	content, err := os.ReadFile("../../docs/applications.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, tested []string
	for _, row := range regexp.MustCompile(`(?m)^\| \[([a-z]+)\]\(`).FindAllStringSubmatch(string(content), -1) {
		listed = append(listed, row[1])
	}
	for _, p := range Programs {
		tested = append(tested, p.Name)
	}
	if !slices.Equal(listed, tested) {
		t.Errorf("docs/applications.md lists %v, tested are %v", listed, tested)
	}
}

// TestUndeclare: Services alone lose what says what their ports speak.
func TestUndeclare(t *testing.T) {
	got, err := undeclare("kind: Service\nspec: {ports: [{name: http-web, appProtocol: http, port: 80, targetPort: web}]}\n---\nkind: Pod\nspec: {ports: [{name: http}]}")
	want := "kind: Service\nspec:\n  ports:\n  - name: port-80\n    port: 80\n    targetPort: web\n\n---\nkind: Pod\nspec: {ports: [{name: http}]}"
	if err != nil || got != want {
		t.Errorf("%v, %q", err, got)
	}
}
