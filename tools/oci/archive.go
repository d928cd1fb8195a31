package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The names by which containerd and other readers of an OCI layout know an image.
const (
	nameAnnotation = "io.containerd.image.name"
	refAnnotation  = "org.opencontainers.image.ref.name"
)

const indexFile = "index.json"

// Write puts an image into one archive that every reader takes: an OCI layout (ctr, kind, podman) with the manifest.json
// of `docker save` beside it (docker load, crane). ref is the image's full name, tag included.
func Write(path, ref, tag string, image v1.Image) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return fmt.Errorf("create the archive: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	w := tar.NewWriter(file)
	if err := writeArchive(w, ref, tag, image); err != nil {
		return fmt.Errorf("write the archive of %s: %w", ref, err)
	}
	if err := errors.Join(w.Close(), file.Chmod(0o644), file.Close()); err != nil {
		return fmt.Errorf("finish the archive of %s: %w", ref, err)
	}
	return os.Rename(file.Name(), path)
}

func writeArchive(w *tar.Writer, ref, tag string, image v1.Image) error {
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	configDigest, err := image.ConfigName()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Size: int64(len(manifest)), Digest: digest,
			Annotations: map[string]string{nameAnnotation: ref, refAnnotation: tag},
		}},
	})
	if err != nil {
		return err
	}
	// The index comes first: who only wants to know the digest need not read on.
	entries := []struct {
		name    string
		content []byte
	}{
		{indexFile, index},
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{blob(digest), manifest},
		{blob(configDigest), config},
	}
	saved := savedImage{Config: blob(configDigest), RepoTags: []string{ref}}
	for _, entry := range entries {
		if err := add(w, entry.name, entry.content); err != nil {
			return err
		}
	}
	for _, layer := range layers {
		name, err := addLayer(w, layer)
		if err != nil {
			return err
		}
		saved.Layers = append(saved.Layers, name)
	}
	list, err := json.Marshal([]savedImage{saved})
	if err != nil {
		return err
	}
	return add(w, "manifest.json", list)
}

// savedImage is an entry of docker save's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func addLayer(w *tar.Writer, layer v1.Layer) (string, error) {
	digest, err := layer.Digest()
	if err != nil {
		return "", err
	}
	reader, err := layer.Compressed()
	if err != nil {
		return "", err
	}
	defer reader.Close()
	size, err := layer.Size()
	if err != nil {
		return "", err
	}
	if err := w.WriteHeader(header(blob(digest), size)); err != nil {
		return "", err
	}
	_, err = io.Copy(w, reader)
	return blob(digest), err
}

func add(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(header(name, int64(len(content)))); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, Format: tar.FormatPAX}
}

func blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// Entry is an image in an archive.
type Entry struct {
	Ref    string
	Digest string
}

// List reads the names and digests of an archive's images, without reading the images.
func List(path string) ([]Entry, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image archive: %w", err)
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s is not an OCI archive: it has no %s", path, indexFile)
		}
		if err != nil {
			return nil, fmt.Errorf("read image archive %s: %w", path, err)
		}
		if filepath.Clean(header.Name) != indexFile {
			continue
		}
		index, err := v1.ParseIndexManifest(r)
		if err != nil {
			return nil, fmt.Errorf("read the index of %s: %w", path, err)
		}
		var entries []Entry
		for _, m := range index.Manifests {
			entries = append(entries, Entry{Ref: m.Annotations[nameAnnotation], Digest: m.Digest.String()})
		}
		return entries, nil
	}
}
