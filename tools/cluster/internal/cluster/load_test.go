package cluster

import (
	"testing"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

const list = `REF                       TYPE                                       DIGEST         SIZE    PLATFORMS   LABELS
docker.io/bulwark/pilot:1 application/vnd.oci.image.manifest.v1+json sha256:aaaa    1.0 MiB linux/amd64 -
docker.io/bulwark/agent:1 application/vnd.oci.image.manifest.v1+json sha256:bbbb    1.0 MiB linux/amd64 -
`

func TestOnlyTheSameDigestUnderTheSameNameIsThere(t *testing.T) {
	have := parseList(list)
	if len(have) != 2 {
		t.Fatalf("read %v", have)
	}
	for _, tc := range []struct {
		name  string
		entry oci.Entry
		want  bool
	}{
		{"same", oci.Entry{Ref: "docker.io/bulwark/pilot:1", Digest: "sha256:aaaa"}, true},
		{"new content", oci.Entry{Ref: "docker.io/bulwark/pilot:1", Digest: "sha256:cccc"}, false},
		{"new tag", oci.Entry{Ref: "docker.io/bulwark/pilot:2", Digest: "sha256:aaaa"}, false},
		{"no name", oci.Entry{Digest: "sha256:aaaa"}, false},
	} {
		if got := contains(have, []oci.Entry{tc.entry}); got != tc.want {
			t.Errorf("%s: got %t", tc.name, got)
		}
	}
}
