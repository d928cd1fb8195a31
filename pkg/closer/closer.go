// Package closer has the filter by which proxies end what is open and forbidden by new policies: a WebAssembly module, which stock Envoy runs in its sandbox. What it is
// told is in Pilot's package open. Pilot sends it to a proxy with each of its rules, or, where the node's agent has left it in the pod's directory, only names the file.
package closer

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // of the module
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Module is the filter, made of the directory source by `make closer`.
//
//go:embed closer.wasm
var Module []byte

// Version tells one Module from all others: it is made of its content.
var Version = func() string {
	sum := sha256.Sum256(Module)
	return hex.EncodeToString(sum[:12])
}()

// File is the name of the file that has the module of a version.
func File(version string) string { return "closer-" + version + ".wasm" }

// Write has the module in a file of a directory, which may have it already.
func Write(dir string) error {
	path := filepath.Join(dir, File(Version))
	if written, err := os.ReadFile(path); err == nil && bytes.Equal(written, Module) {
		return nil
	}
	whole, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return fmt.Errorf("writing the module that ends connections: %w", err)
	}
	defer os.Remove(whole.Name()) // fails once it has its name
	_, err = whole.Write(Module)
	if err == nil {
		err = whole.Chmod(0o444) // the proxy is another user
	}
	if closed := whole.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(whole.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing the module that ends connections to %s: %w", path, err)
	}
	return nil
}

const temporary = "closer-*"

// Remove removes the modules of all versions from a directory.
func Remove(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, temporary))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("removing a module that ends connections: %w", err)
		}
	}
	return nil
}
