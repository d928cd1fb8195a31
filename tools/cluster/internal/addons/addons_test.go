package addons

import (
	"regexp"
	"strings"
	"testing"
)

func TestEveryDocumentGoesToItsOwnPath(t *testing.T) {
	documents := strings.Split(manifest, "\n---\n")
	if len(documents) != len(paths) {
		t.Fatalf("%d documents, %d paths", len(documents), len(paths))
	}
	field := func(document, name string) string {
		match := regexp.MustCompile(`(?m)\b` + name + `: *([^\s,}]+)`).FindStringSubmatch(document)
		if match == nil {
			return ""
		}
		return match[1]
	}
	for i, document := range documents {
		_, metadata, _ := strings.Cut(document, "metadata:")
		version, kind, name := field(document, "apiVersion"), field(document, "kind"), field(metadata, "name")
		if !strings.Contains(paths[i], "/"+version+"/") || !strings.HasSuffix(paths[i], "/"+strings.ToLower(kind)+"s/"+name) {
			t.Errorf("%s %s %s goes to %s", version, kind, name, paths[i])
		}
	}
}

func TestImagesOfTheManifestAreThoseWeMake(t *testing.T) {
	for _, match := range regexp.MustCompile(`image: (\S+)`).FindAllStringSubmatch(manifest, -1) {
		if match[1] != CoreDNSImage {
			t.Errorf("nobody makes %s", match[1])
		}
	}
}
