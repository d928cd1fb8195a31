// Package addons is what a cluster runs from the start: cluster DNS, and the API server's right to call kubelets.
package addons

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
	"github.com/bulwark-mesh/bulwark/tools/oci"
)

//go:embed addons.yaml
var manifest string

// Images the addons and every pod need. They have no registry: they come to the nodes as archives.
const (
	PauseImage   = "bulwark.dev/cluster/pause:1"
	CoreDNSImage = "bulwark.dev/cluster/coredns:1"
)

// paths is where the objects of the manifest go, in its order: mapping kinds to resources takes discovery, which six
// objects are not worth.
var paths = []string{
	"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kubelet-client",
	"/api/v1/namespaces/kube-system/serviceaccounts/coredns",
	"/apis/rbac.authorization.k8s.io/v1/clusterroles/coredns",
	"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/coredns",
	"/api/v1/namespaces/kube-system/configmaps/coredns",
	"/api/v1/namespaces/kube-system/services/kube-dns",
	"/apis/apps/v1/namespaces/kube-system/deployments/coredns",
}

// Apply puts the addons into the cluster.
func Apply(ctx context.Context, client *kubeapi.Client) error {
	documents := strings.Split(manifest, "\n---\n")
	if len(documents) != len(paths) {
		return fmt.Errorf("addons: %d documents, %d paths", len(documents), len(paths))
	}
	for i, document := range documents {
		if err := client.Apply(ctx, paths[i], []byte(document)); err != nil {
			return fmt.Errorf("apply addon: %w", err)
		}
	}
	return nil
}

// WritePauseImage makes the archive of the sandbox image from its binary.
func WritePauseImage(path, binary string) error {
	return writeImage(path, PauseImage, binary, "65535:65535")
}

// WriteCoreDNSImage makes the archive of the CoreDNS image from its binary.
func WriteCoreDNSImage(path, binary string) error {
	return writeImage(path, CoreDNSImage, binary, "65532:65532")
}

func writeImage(path, ref, binary, user string) error {
	_, name, _ := strings.Cut(ref, "/cluster/")
	name, tag, _ := strings.Cut(name, ":")
	image, err := oci.Build(oci.Spec{
		Files:      []oci.File{{Path: "/" + name, Source: binary, Mode: 0o755}},
		Entrypoint: []string{"/" + name},
		User:       user,
	}, false)
	if err != nil {
		return fmt.Errorf("build the image of %s: %w", name, err)
	}
	return oci.Write(path, ref, tag, image)
}

// Fingerprint is all that the addons' objects depend on.
func Fingerprint() string { return manifest }
