package oci

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// plainLayer is an uncompressed layer: its digest is its diff ID.
type plainLayer struct {
	open func() (io.ReadCloser, error)
	size int64
	once sync.Once
	hash v1.Hash
	err  error
}

// layerOf is a layer of bytes in memory.
func layerOf(content []byte) *plainLayer {
	return &plainLayer{open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }, size: int64(len(content))}
}

// layerFile is a layer that is a tar file of this machine, which is too large to be held.
func layerFile(path string) (*plainLayer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at a root file system: %w", err)
	}
	return &plainLayer{open: func() (io.ReadCloser, error) { return os.Open(path) }, size: info.Size()}, nil
}

func (l *plainLayer) Digest() (v1.Hash, error) {
	l.once.Do(func() {
		var content io.ReadCloser
		if content, l.err = l.open(); l.err != nil {
			return
		}
		defer content.Close()
		l.hash, _, l.err = v1.SHA256(content)
	})
	return l.hash, l.err
}

func (l *plainLayer) DiffID() (v1.Hash, error)             { return l.Digest() }
func (l *plainLayer) Size() (int64, error)                 { return l.size, nil }
func (l *plainLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *plainLayer) Compressed() (io.ReadCloser, error)   { return l.open() }
func (l *plainLayer) Uncompressed() (io.ReadCloser, error) { return l.open() }
