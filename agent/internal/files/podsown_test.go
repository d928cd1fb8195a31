package files

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
)

// owned makes a directory of a process of the pod, as deep as it is named.
func owned(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(path, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, attacker, attacker); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsThePodsOwnIsLeftAlone(t *testing.T) {
	_, dir := volume(t)
	mine := filepath.Join(dir, "..mine")
	owned(t, mine, 0o700)
	owned(t, filepath.Join(mine, "deep"), 0o700)
	for range 2 {
		err := asAgent(func() error {
			root, err := open(dir)
			if err != nil {
				return err
			}
			defer root.Close()
			made, err := replace(root, contents, reader, reader, time.Now())
			return errors.Join(err, sweep(root, made))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(mine, "deep")); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 5 { // two links, ..data, its directory and the pod's
		t.Errorf("%v, %v", entries, err)
	}
}

func TestFilesAreThereAlsoIfEarlierOnesStay(t *testing.T) {
	target, dir := volume(t)
	if err := os.MkdirAll(filepath.Join(dir, "..of-root", "a/b"), 0o755); err != nil { // as a pod that runs as root may
		t.Fatal(err)
	}
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	current, err := p.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	trust, _, err := n.Bundle.Current()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	w := New(target, spec, p, n.Bundle, slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		if err := asAgent(func() error { return w.write(current, trust) }); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "earlier identity files") {
		t.Errorf("logged: %s", log.String())
	}
}

func TestFailureChangesNothing(t *testing.T) {
	more := []file{{certFile, []byte("c"), 0o444}, {keyFile, make([]byte, 100<<10), 0o400}}
	for name, trap := range map[string]func(t *testing.T, dir string) error{
		"a file's name is taken": func(_ *testing.T, dir string) error {
			name := filepath.Join(dir, keyFile)
			return errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "x"), 0o777))
		},
		"the link's name is taken": func(_ *testing.T, dir string) error {
			name := filepath.Join(dir, dataLink)
			return errors.Join(os.Rename(name, filepath.Join(dir, "old")), os.MkdirAll(filepath.Join(name, "x"), 0o777))
		},
		"the new link's name is taken": func(_ *testing.T, dir string) error { return os.MkdirAll(filepath.Join(dir, newLink, "x"), 0o777) },
		"the memory is full": func(t *testing.T, dir string) error {
			err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=777")
			if errors.Is(err, unix.EPERM) {
				t.Skip("mounting a tmpfs needs CAP_SYS_ADMIN")
			}
			if err == nil {
				t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
				err = write(dir)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := volume(t)
			if err := errors.Join(write(dir), trap(t, dir)); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			root, err := open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := asAgent(func() error {
				_, err := replace(root, more, reader, reader, time.Now())
				return err
			}); err == nil {
				t.Fatal("it went well")
			}
			if after := tree(t, dir); !maps.Equal(after, before) {
				t.Errorf("before: %v\nafter: %v", before, after)
			}
		})
	}
}

// tree is every path below dir with its mode, and where it leads.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		to, _ := os.Readlink(path)                 // empty if it is no link
		if !strings.HasSuffix(path, "/"+newLink) { // which leads nowhere and is the agent's to replace
			out[path] = d.Type().String() + " " + to
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNothingIsWrittenIntoWhatTheAgentDidNotMake(t *testing.T) {
	_, dir := volume(t)
	root, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, mode := range map[string]fs.FileMode{"private": 0o700, "open": 0o777} {
		owned(t, filepath.Join(dir, name), mode)
		if d, err := enter(root, name, mode); err == nil {
			d.Close()
			t.Errorf("the pod's directory %s was taken for the agent's", name)
		}
	}
	// Even where the agent could be led: what is there before is not opened, so that it neither waits at a FIFO nor
	// writes into a file of others.
	d, err := root.OpenRoot("open")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, trap := range map[string]func(path string) error{
		"fifo": func(path string) error { return unix.Mkfifo(path, 0o666) },
		"file": func(path string) error { return os.WriteFile(path, []byte("mine"), 0o666) },
		"link": func(path string) error { return os.Symlink("file", path) },
	} {
		if err := trap(filepath.Join(dir, "open", name)); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- create(d, file{name, []byte(secret), 0o400}, reader, reader) }()
		select {
		case err := <-done:
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the agent waits", name)
		}
	}
}

func TestReadyIsWhoHasTheAgentsFilesWithAGoodCertificate(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	until := func(end time.Time) []file {
		s := n.CA.SVID(p.ID, end)
		return []file{{certFile, encode(s.Certificates), 0o444}, {keyFile, []byte(secret), 0o400}}
	}
	for name, c := range map[string]struct {
		put   func(dir string) error
		ready bool
	}{
		"nothing":                {func(string) error { return nil }, false},
		"an earlier agent's":     {func(dir string) error { return writeAll(dir, until(time.Now().Add(time.Hour))) }, true},
		"ended meanwhile":        {func(dir string) error { return writeAll(dir, until(time.Now().Add(-time.Minute))) }, false},
		"a key of the pod's own": {func(dir string) error { return os.WriteFile(filepath.Join(dir, keyFile), []byte("mine"), 0o444) }, false},
		"a directory of the pod's own": {func(dir string) error {
			if err := writeAll(dir, until(time.Now().Add(time.Hour))); err != nil {
				return err
			}
			data, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
			return errors.Join(err, os.Chown(data, attacker, attacker))
		}, false},
		"no key": {func(dir string) error { return writeAll(dir, until(time.Now().Add(time.Hour))[:1]) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			target, dir := volume(t)
			if err := c.put(dir); err != nil {
				t.Fatal(err)
			}
			var err error
			_ = asAgent(func() error {
				err = New(target, spec, p, n.Bundle, identitytest.Quiet).Ready()
				return nil
			})
			if (err == nil) != c.ready {
				t.Errorf("Ready: %v", err)
			}
			if err != nil && !errors.Is(err, ErrNotWritten) {
				t.Errorf("%v", err)
			}
		})
	}
}

func writeAll(dir string, files []file) error {
	root, err := open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = replace(root, files, reader, reader, time.Now())
	return err
}

func TestSweepLooksAtNoMoreThanItHasTo(t *testing.T) {
	_, dir := volume(t)
	for i := range most + 100 {
		if err := os.Symlink("x", filepath.Join(dir, fmt.Sprint("..", i))); err != nil {
			t.Fatal(err)
		}
	}
	root, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := list(root, most); err != nil || len(got) != most {
		t.Errorf("%d entries, %v", len(got), err)
	}
	if err := write(dir); err != nil {
		t.Error(err)
	}
}
