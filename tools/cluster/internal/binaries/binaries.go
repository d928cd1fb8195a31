// Package binaries builds the programs a cluster is made of from their Go modules, once for each state of those modules.
package binaries

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// KubernetesVersion is what the Kubernetes binaries say they are: without it clients read v0.0.0.
const KubernetesVersion = "v1.36.3"

// Component is one Go module whose commands are built together.
type Component struct {
	Name string
	// Packages are the arguments of go build: "tool" builds every tool the module's go.mod names.
	Packages []string
	LDFlags  string
	Tags     string
}

// Components in order of build. Kubernetes is last: it takes longest, and fails least often.
var Components = []Component{
	{Name: "containerd", Packages: []string{"tool"}, Tags: "no_btrfs no_zfs no_devmapper"},
	{Name: "etcd", Packages: []string{"."}},
	{Name: "coredns", Packages: []string{"."}},
	{Name: "pause", Packages: []string{"."}},
	{Name: "kubernetes", Packages: []string{"tool"}, LDFlags: "-X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"},
}

// buildTimeout is generous: the machine's cores may be shared.
const buildTimeout = 45 * time.Minute

// Cache knows where modules are and where their binaries go.
type Cache struct {
	Source string // directory holding one module per component
	Dir    string
	// Progress is told what is being built, now and then.
	Progress func(format string, args ...any)
}

// DefaultDir is $BULWARK_CACHE, or the user's cache directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("BULWARK_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(home, ".cache", "bulwark"), nil
}

// Set is where each component's binaries are.
type Set map[string]string

// Path of a binary of a component.
func (s Set) Path(component, binary string) string { return filepath.Join(s[component], binary) }

// Ensure builds what the cache does not have.
func (c Cache) Ensure(ctx context.Context) (Set, error) {
	set := Set{}
	for _, component := range Components {
		dir, err := c.ensure(ctx, component)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", component.Name, err)
		}
		set[component.Name] = dir
	}
	return set, nil
}

// Locate says where binaries are, or will be once built.
func (c Cache) Locate() (Set, error) {
	set := Set{}
	for _, component := range Components {
		dir, err := c.locate(component)
		if err != nil {
			return nil, fmt.Errorf("locate %s: %w", component.Name, err)
		}
		set[component.Name] = dir
	}
	return set, nil
}

func (c Cache) locate(component Component) (string, error) {
	key, err := key(filepath.Join(c.Source, component.Name), component)
	if err != nil {
		return "", err
	}
	return filepath.Join(c.Dir, component.Name+"-"+key), nil
}

func (c Cache) ensure(ctx context.Context, component Component) (string, error) {
	dir, err := c.locate(component)
	if err != nil {
		return "", err
	}
	if exists(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(dir) { // built while we waited
		return dir, nil
	}
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("remove an unfinished build: %w", err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return "", fmt.Errorf("make the build directory: %w", err)
	}
	if err := c.build(ctx, component, partial); err != nil {
		return "", err
	}
	if err := os.Rename(partial, dir); err != nil {
		return "", fmt.Errorf("move the finished build into place: %w", err)
	}
	return dir, nil
}

func (c Cache) build(ctx context.Context, component Component, out string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	args := append(buildArgs(component), "-v", "-o", out+string(filepath.Separator))
	cmd := exec.CommandContext(ctx, "go", append(args, component.Packages...)...)
	cmd.Dir = filepath.Join(c.Source, component.Name)
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("watch the build: %w", err)
	}
	start := time.Now()
	c.Progress("building %s", component.Name)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go build: %w", err)
	}
	problems := c.watch(component.Name, stderr, start)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", cmd.Dir, err, problems)
	}
	c.Progress("built %s in %s", component.Name, time.Since(start).Round(time.Second))
	return nil
}

// watch counts the packages that `go build -v` names, reports every 15 s, and returns all other lines: the errors.
func (c Cache) watch(name string, stderr io.Reader, start time.Time) string {
	var packages atomic.Int64
	done := make(chan struct{})
	defer close(done)
	go func() {
		ticker := time.NewTicker(15 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				c.Progress("building %s: %d packages compiled, %s", name, packages.Load(), time.Since(start).Round(time.Second))
			}
		}
	}()
	var other strings.Builder
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "go: downloading"):
		case strings.ContainsAny(line, " \t#"):
			other.WriteString(line + "\n")
		default:
			packages.Add(1)
		}
	}
	return other.String()
}

func buildArgs(component Component) []string {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + component.LDFlags)}
	if component.Tags != "" {
		args = append(args, "-tags", component.Tags)
	}
	return args
}

// key names a build by what goes into it: the module's versions, its own sources and the flags.
func key(dir string, component Component) (string, error) {
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, path := range append([]string{filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")}, sources...) {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && filepath.Base(path) == "go.sum" {
			continue // a module without dependencies has none
		}
		if err != nil {
			return "", fmt.Errorf("read %s's module: %w", component.Name, err)
		}
		fmt.Fprintf(hash, "%s %d\n", filepath.Base(path), len(content))
		hash.Write(content)
	}
	fmt.Fprintf(hash, "%q %q", buildArgs(component), component.Packages)
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for %s: %w", path, err), file.Close())
	}
	return func() { file.Close() }, nil
}
