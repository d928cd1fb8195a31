// Package oci builds container images from files, without a container engine and always to the same bytes.
package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of an image: the content of Source on this machine or, when that is empty, Content. A path that ends
// in a slash is a directory.
type File struct {
	Path    string
	Source  string
	Content []byte
	Mode    int64
}

// Spec describes an image: one layer of files, on that of a root file system if there is one.
type Spec struct {
	Base       string // an uncompressed tar of this machine; "" for none
	Files      []File
	Entrypoint []string
	Path       string // where programs are looked for; "" for directories that are not only root's
	User       string
	Labels     map[string]string
}

// Build makes the image. Times are zero and entries sorted, so equal inputs give equal digests. The layer of files is compressed on
// request only: to a node next door, compressing costs more than it saves.
func Build(spec Spec, compress bool) (v1.Image, error) {
	content, err := layerTar(spec.Files)
	if err != nil {
		return nil, err
	}
	plain := layerOf(content)
	var layer v1.Layer = plain
	if compress {
		if layer, err = tarball.LayerFromOpener(plain.open, tarball.WithMediaType(types.OCILayer)); err != nil {
			return nil, fmt.Errorf("compress the layer: %w", err)
		}
	}
	layers := []mutate.Addendum{{Layer: layer, History: v1.History{CreatedBy: "bulwark images"}}}
	if spec.Base != "" {
		base, err := layerFile(spec.Base)
		if err != nil {
			return nil, err
		}
		layers = append([]mutate.Addendum{{Layer: base, History: v1.History{CreatedBy: "bulwark images"}}}, layers...)
	}
	image, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		return nil, fmt.Errorf("append the layers: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the image's configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config.Entrypoint = spec.Entrypoint
	config.Config.User = spec.User
	config.Config.Labels = spec.Labels
	config.Config.WorkingDir = "/"
	config.Config.Env = []string{"PATH=" + cmp.Or(spec.Path, "/usr/local/bin:/usr/bin:/bin")}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, fmt.Errorf("set the image's configuration: %w", err)
	}
	return image, nil
}

// layerTar writes the files, and before each the directories that lead to it.
func layerTar(files []File) ([]byte, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(clean(a.Path), clean(b.Path)) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true, "": true}
	for _, file := range files {
		name := clean(file.Path)
		if err := parents(w, path.Dir(name), made); err != nil {
			return nil, err
		}
		if strings.HasSuffix(file.Path, "/") {
			if err := directory(w, name, file.Mode, made); err != nil {
				return nil, err
			}
			continue
		}
		if err := regular(w, name, file); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("finish the layer: %w", err)
	}
	return out.Bytes(), nil
}

func parents(w *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := parents(w, path.Dir(dir), made); err != nil {
		return err
	}
	return directory(w, dir, 0o755, made)
}

func directory(w *tar.Writer, name string, mode int64, made map[string]bool) error {
	if made[name] {
		return nil
	}
	made[name] = true
	header := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Format: tar.FormatPAX}
	if err := w.WriteHeader(header); err != nil {
		return fmt.Errorf("write directory %s: %w", name, err)
	}
	return nil
}

func regular(w *tar.Writer, name string, file File) error {
	content := file.Content
	if file.Source != "" {
		var err error
		if content, err = os.ReadFile(file.Source); err != nil {
			return fmt.Errorf("read the image's /%s: %w", name, err)
		}
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: file.Mode, Size: int64(len(content)), Format: tar.FormatPAX}
	if err := errors.Join(w.WriteHeader(header), second(w.Write(content))); err != nil {
		return fmt.Errorf("write /%s: %w", name, err)
	}
	return nil
}

func second(_ int, err error) error { return err }

func clean(name string) string { return strings.Trim(path.Clean("/"+name), "/") }
