package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

const pushLimit = 10 * time.Minute

// layout goes into every image's stamp: change it with what the archives themselves look like.
const layout = 1

// Options of a build.
type Options struct {
	Version  string
	Bin      string // directory of binaries
	Out      string // directory of archives
	Only     []string
	Compress bool
	Log      func(format string, args ...any)
}

// Build makes the archives whose inputs have changed since they were made. One that cannot be made is an error, and keeps
// none of the others from being made.
func Build(ctx context.Context, opts Options) error {
	chosen, err := choose(opts.Only)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(opts.Out, 0o755); err != nil {
		return fmt.Errorf("make the images' directory: %w", err)
	}
	// All at once: an image is bound by reading and hashing its binary.
	var all sync.WaitGroup
	errs := make([]error, len(chosen))
	for i, k := range chosen {
		all.Go(func() { errs[i] = build(ctx, k, opts) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func build(ctx context.Context, k kind, opts Options) error {
	spec, err := k.spec(ctx, opts.Bin)
	if err != nil {
		return err
	}
	stamp, err := stampOf(spec, opts)
	if err != nil {
		return err
	}
	archive, stampFile := Archive(opts.Out, k.name), filepath.Join(opts.Out, "."+k.name+".stamp")
	if current, err := os.ReadFile(stampFile); err == nil && string(current) == stamp && exists(archive) {
		return nil
	}
	start := time.Now()
	image, err := oci.Build(spec, opts.Compress)
	if err != nil {
		return fmt.Errorf("build image %s: %w", k.name, err)
	}
	if err := oci.Write(archive, ref(k.name, opts.Version), opts.Version, image); err != nil {
		return err
	}
	if err := os.WriteFile(stampFile, []byte(stamp), 0o644); err != nil {
		return fmt.Errorf("write the stamp of image %s: %w", k.name, err)
	}
	opts.Log("%s in %s", archive, time.Since(start).Round(10*time.Millisecond))
	return nil
}

// Archive is where an image is written.
func Archive(out, name string) string { return filepath.Join(out, name+".tar") }

func ref(name, version string) string { return Repository + "/" + name + ":" + version }

// stampOf tells one set of inputs from another by size and time of files: reading them all would cost as much as building.
func stampOf(spec oci.Spec, opts Options) (string, error) {
	hash := sha256.New()
	fmt.Fprintf(hash, "%d %s %t %q %s %v\n", layout, opts.Version, opts.Compress, spec.Entrypoint, spec.User, spec.Labels)
	for _, file := range spec.Files {
		fmt.Fprintf(hash, "%s %o %q ", file.Path, file.Mode, file.Content)
		if file.Source != "" {
			info, err := os.Stat(file.Source)
			if err != nil {
				return "", fmt.Errorf("look at an image's file: %w", err)
			}
			fmt.Fprintf(hash, "%s %d %d", file.Source, info.Size(), info.ModTime().UnixNano())
		}
		fmt.Fprintln(hash)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// Push copies built archives to a registry, under <registry>/<name>:<version>.
func Push(ctx context.Context, registry string, opts Options) error {
	chosen, err := choose(opts.Only)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pushLimit)
	defer cancel()
	for _, k := range chosen {
		image, err := tarball.ImageFromPath(Archive(opts.Out, k.name), nil)
		if err != nil {
			return fmt.Errorf("read the archive of %s; build it first: %w", k.name, err)
		}
		to, err := name.NewTag(registry + "/" + k.name + ":" + opts.Version)
		if err != nil {
			return fmt.Errorf("name image %s: %w", k.name, err)
		}
		if err := remote.Write(to, image, remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", to, err)
		}
		opts.Log("pushed %s", to)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
