package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

const (
	bootstrapLimit = 20 * time.Minute
	suite          = "bookworm" // of Debian, whose packages the tests' manifests are written for
	applications   = "applications"
)

// unneeded is what the packages bring along for people.
var unneeded = []string{"/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"}

// What is done before packages are configured, some of which link into the manual; and after that: databases begin empty, and no server needs a
// desktop's libraries, which Java's packages depend on.
const (
	makeManual = `mkdir -p "$1/usr/share/man/man1" "$1/usr/share/man/man7"`
	tidyUp     = `cd "$1" && rm -rf var/lib/mysql/* var/lib/postgresql/* var/lib/apt/lists/* usr/share/javascript usr/share/icons usr/share/maven-repo usr/lib/*/libLLVM* usr/lib/*/dri`
)

// ApplicationsOptions say what is in the image of real programs, and where it comes to.
type ApplicationsOptions struct {
	Packages string   // a file with Debian packages, one a line; # begins a comment
	Binaries []string // programs besides, which come to /usr/local/bin
	Cache    string   // directory where the root file system is kept for the next time
	Archive  string   // the OCI archive to write
	Log      func(format string, args ...any)
}

// Applications writes the image applications:<tag>, for the tests of real programs, and returns its tag, which is that of its content. The root file system is made by
// mmdebstrap, once for one list of packages.
func Applications(ctx context.Context, opts ApplicationsOptions) (tag string, err error) {
	list, err := os.ReadFile(opts.Packages)
	if err != nil {
		return "", fmt.Errorf("read the list of packages: %w", err)
	}
	args := bootstrap(packagesOf(string(list)))
	root := filepath.Join(opts.Cache, applications+"-"+shortDigest(args)+".tar")
	if !exists(root) {
		if err := makeRoot(ctx, args, root, opts.Log); err != nil {
			return "", fmt.Errorf("make the root file system of %s: %w", opts.Packages, err)
		}
	}
	spec := oci.Spec{Base: root, Entrypoint: []string{"/bin/sh"}, User: "0:0", Path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, binary := range opts.Binaries {
		spec.Files = append(spec.Files, oci.File{Path: "/usr/local/bin/" + filepath.Base(binary), Source: binary, Mode: 0o755})
	}
	stamp, err := stampOf(spec, Options{})
	if err != nil {
		return "", err
	}
	tag = shortDigest([]string{filepath.Base(root), spec.Path, stamp})
	if entries, err := oci.List(opts.Archive); err == nil && len(entries) == 1 && entries[0].Ref == ref(applications, tag) {
		return tag, nil
	}
	image, err := oci.Build(spec, false)
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", applications, err)
	}
	if err := os.MkdirAll(filepath.Dir(opts.Archive), 0o755); err != nil {
		return "", fmt.Errorf("make the directory of image %s: %w", applications, err)
	}
	return tag, oci.Write(opts.Archive, ref(applications, tag), tag, image)
}

func packagesOf(list string) []string {
	var out []string
	for line := range strings.Lines(list) {
		line, _, _ = strings.Cut(line, "#")
		out = append(out, strings.Fields(line)...)
	}
	return out
}

// bootstrap are mmdebstrap's arguments but for the file that it is to write.
func bootstrap(packages []string) []string {
	args := []string{"--mode=root", "--variant=minbase", "--include=" + strings.Join(packages, ",")}
	for _, path := range unneeded {
		args = append(args, "--dpkgopt=path-exclude="+path)
	}
	return append(args, "--essential-hook="+makeManual, "--customize-hook="+tidyUp, suite)
}

func shortDigest(parts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:6])
}

// makeRoot runs mmdebstrap and, when the file system is whole, puts it in its place and removes those of other lists.
func makeRoot(ctx context.Context, args []string, root string, log func(string, ...any)) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return err
	}
	log("making %s from Debian's packages, which takes some minutes", root)
	ctx, cancel := context.WithTimeout(ctx, bootstrapLimit)
	defer cancel()
	unfinished := root + ".unfinished.tar"
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, unfinished)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes what it has mounted
	cmd.WaitDelay = 30 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("mmdebstrap: %w\n%s", err, lastLines(out, 20)), os.RemoveAll(unfinished))
	}
	others, err := filepath.Glob(filepath.Join(filepath.Dir(root), applications+"-*.tar"))
	if err != nil {
		return err
	}
	for _, other := range others {
		if other != unfinished {
			err = errors.Join(err, os.Remove(other))
		}
	}
	return errors.Join(err, os.Rename(unfinished, root))
}

func lastLines(out []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
