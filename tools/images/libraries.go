package images

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

// libraryDirs are where Debian and its like keep shared libraries.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// sharedLibraries finds the loader of a dynamic binary and all libraries that it needs, and those that they need.
func sharedLibraries(binary string) ([]oci.File, error) {
	var files []oci.File
	seen := map[string]bool{}
	queue := []string{binary}
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		loader, needed, err := dynamic(path)
		if err != nil {
			return nil, err
		}
		if loader != "" && !seen[filepath.Base(loader)] {
			seen[filepath.Base(loader)] = true
			files = append(files, oci.File{Path: loader, Source: loader, Mode: 0o755})
		}
		for _, name := range needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			library, err := findLibrary(name)
			if err != nil {
				return nil, fmt.Errorf("%s needs %s: %w", path, name, err)
			}
			files = append(files, oci.File{Path: library, Source: library, Mode: 0o755})
			queue = append(queue, library)
		}
	}
	return files, nil
}

// dynamic reads what a binary asks of the dynamic linker.
func dynamic(path string) (loader string, needed []string, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("read %s as ELF: %w", path, err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(name, 0); err != nil {
			return "", nil, fmt.Errorf("read the loader's name in %s: %w", path, err)
		}
		loader = strings.TrimRight(string(name), "\x00")
	}
	needed, err = file.ImportedLibraries()
	if err != nil {
		return "", nil, fmt.Errorf("read the libraries of %s: %w", path, err)
	}
	return loader, needed, nil
}

func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("not in any library directory")
}
