package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names in the directory. Each file is a link into ..data, and that is a link to a directory that never changes: what a
// reader opens through it fits together (kubelet's own volumes are made so).
const (
	dataLink = "..data"
	newLink  = "..data_tmp"
	prefix   = ".." // of the directories with content
)

type file struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// open opens the directory, which the pod may write to: all that follows stays inside of it, whatever links there are.
func open(dir string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("the pod's emptyDir for files: %w", err)
	}
	memory, err := InMemory(root)
	if err != nil {
		err = fmt.Errorf("the pod's emptyDir for files: %w", err)
	} else if !memory {
		err = errors.New("the pod's emptyDir for files is on a disk, where no key is written; give the emptyDir medium: Memory")
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// InMemory says whether a directory is in memory (tmpfs or ramfs) and not on a disk.
func InMemory(root *os.Root) (bool, error) {
	d, err := root.Open(".")
	if err != nil {
		return false, err
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: root.Name(), Err: err}
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

// replace puts the files in place of those that are there, all in one step.
func replace(root *os.Root, files []file, uid, gid int, now time.Time) error {
	dir := fmt.Sprintf("%s%s.%09d", prefix, now.UTC().Format("2006_01_02_15_04_05"), now.Nanosecond())
	if err := root.RemoveAll(dir); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := fill(root, dir, files, uid, gid); err != nil {
		return errors.Join(err, root.RemoveAll(dir))
	}
	if err := root.RemoveAll(newLink); err != nil {
		return err
	}
	if err := root.Symlink(dir, newLink); err != nil {
		return err
	}
	if err := root.Rename(newLink, dataLink); err != nil {
		return err
	}
	for _, f := range files {
		if err := point(root, f.name); err != nil {
			return err
		}
	}
	return sweep(root, dir)
}

// fill gives each file its owner last: after that it is no longer the agent's to change.
func fill(root *os.Root, dir string, files []file, uid, gid int) error {
	if err := root.Chmod(dir, 0o755); err != nil { // whatever the umask
		return err
	}
	for _, f := range files {
		path := dir + "/" + f.name
		if err := root.WriteFile(path, f.content, 0o600); err != nil {
			return err
		}
		if err := root.Chmod(path, f.mode); err != nil {
			return err
		}
		if err := root.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func point(root *os.Root, name string) error {
	want := dataLink + "/" + name
	if have, err := root.Readlink(name); err == nil && have == want {
		return nil
	}
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	return root.Symlink(want, name)
}

// sweep removes the directories of earlier times, those of an agent that died while it wrote among them.
func sweep(root *os.Root, keep string) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	var errs error
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) && e.Name() != keep {
			errs = errors.Join(errs, root.RemoveAll(e.Name()))
		}
	}
	return errs
}

// empty removes everything that replace makes.
func empty(root *os.Root, names []string) error {
	var errs error
	for _, name := range slices.Concat(names, []string{dataLink, newLink}) {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
	}
	return errors.Join(errs, sweep(root, ""))
}
