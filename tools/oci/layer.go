package oci

import (
	"bytes"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// plainLayer is an uncompressed layer: its digest is its diff ID.
type plainLayer struct {
	content []byte
	once    sync.Once
	hash    v1.Hash
	err     error
}

func (l *plainLayer) Digest() (v1.Hash, error) {
	l.once.Do(func() { l.hash, _, l.err = v1.SHA256(bytes.NewReader(l.content)) })
	return l.hash, l.err
}

func (l *plainLayer) DiffID() (v1.Hash, error)             { return l.Digest() }
func (l *plainLayer) Size() (int64, error)                 { return int64(len(l.content)), nil }
func (l *plainLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *plainLayer) Compressed() (io.ReadCloser, error)   { return l.reader(), nil }
func (l *plainLayer) Uncompressed() (io.ReadCloser, error) { return l.reader(), nil }

func (l *plainLayer) reader() io.ReadCloser { return io.NopCloser(bytes.NewReader(l.content)) }
