// Package images knows the product's container images: what is in each, as whom it runs, and when it must be built anew.
package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/envoy"
	"github.com/bulwark-mesh/bulwark/tools/oci"
)

// Repository is where images are named until they are pushed elsewhere.
const Repository = "docker.io/bulwark"

// kind of an image: its name is also that of its binary, but for the proxy, whose binary is Envoy.
type kind struct {
	name string
	uid  int
}

// The node agent and the keeper of the CNI plugin are root, as the directories of the node are root's. The proxy has the user that
// traffic redirection exempts.
var catalog = []kind{
	{"pilot", 65532},
	{"citadel", 65532},
	{"mixer", 65532},
	{"agent", 0},
	{"cni", 0},
	{"proxy", 1337},
	{"sample", 65532},
}

// Names of all images.
func Names() []string {
	var names []string
	for _, k := range catalog {
		names = append(names, k.name)
	}
	return names
}

// choose returns the kinds to build: those named, or all.
func choose(only []string) ([]kind, error) {
	if len(only) == 0 {
		return catalog, nil
	}
	var chosen []kind
	for _, name := range only {
		i := slices.IndexFunc(catalog, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no image %q: want some of %s", name, strings.Join(Names(), ", "))
		}
		chosen = append(chosen, catalog[i])
	}
	return chosen, nil
}

// spec lists an image's content; bin is the directory of the product's binaries.
func (k kind) spec(ctx context.Context, bin string) (oci.Spec, error) {
	program, source := "/usr/bin/"+k.name, filepath.Join(bin, k.name)
	var libraries []oci.File
	if k.name == "proxy" {
		path, err := envoy.Path(ctx)
		if err != nil {
			return oci.Spec{}, err
		}
		program, source = "/usr/bin/envoy", path
		if libraries, err = sharedLibraries(path); err != nil {
			return oci.Spec{}, fmt.Errorf("find Envoy's shared libraries: %w", err)
		}
		libraries = append(libraries, oci.File{Path: mesh.PublicRootsPath, Content: publicRoots(), Mode: 0o644})
	}
	if _, err := os.Stat(source); err != nil {
		return oci.Spec{}, fmt.Errorf("image %s: its binary is not built: %w", k.name, err)
	}
	files := append(libraries,
		oci.File{Path: program, Source: source, Mode: 0o755},
		oci.File{Path: "/etc/passwd", Content: []byte(passwd(k)), Mode: 0o644},
		oci.File{Path: "/etc/group", Content: []byte(group(k)), Mode: 0o644},
		oci.File{Path: "/etc/nsswitch.conf", Content: []byte("hosts: files dns\n"), Mode: 0o644},
		oci.File{Path: "/tmp/", Mode: 0o1777},
	)
	return oci.Spec{
		Files:      files,
		Entrypoint: []string{program},
		User:       fmt.Sprintf("%[1]d:%[1]d", k.uid),
		Labels:     map[string]string{"org.opencontainers.image.title": "bulwark " + k.name},
	}, nil
}

func passwd(k kind) string {
	lines := "root:x:0:0:root:/:/usr/sbin/nologin\n"
	if k.uid != 0 {
		lines += fmt.Sprintf("%s:x:%d:%d::/:/usr/sbin/nologin\n", k.name, k.uid, k.uid)
	}
	return lines
}

func group(k kind) string {
	lines := "root:x:0:\n"
	if k.uid != 0 {
		lines += fmt.Sprintf("%s:x:%d:\n", k.name, k.uid)
	}
	return lines
}
