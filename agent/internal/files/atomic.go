package files

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
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

// Modes of the directories with content: until its files have their owners, nobody but the agent gets into one.
const (
	unfinished fs.FileMode = 0o700
	finished   fs.FileMode = 0o755
)

type file struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// open opens the directory. Every process of the pod may write to it, and so rename, replace and remove whatever is in
// it between any two system calls of the agent. Therefore all that follows stays inside of it, whatever links there are;
// what the agent writes goes into a directory that it has made and holds open, into which nobody else can put anything;
// and no name that the pod may have put there is opened but as a directory, so that nothing (a FIFO, say) makes the agent wait.
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

// replace puts the files in place of those that are there, all in one step, and returns the directory that they are in.
// If it fails, what was there is there still.
func replace(root *os.Root, files []file, uid, gid int, now time.Time) (dir string, err error) {
	dir = fmt.Sprintf("%s%s.%09d", prefix, now.UTC().Format("2006_01_02_15_04_05"), now.Nanosecond())
	if err := root.Mkdir(dir, unfinished); err != nil {
		return "", err
	}
	d, err := enter(root, dir, unfinished)
	if err != nil {
		return "", err // nothing of ours is left but an empty directory
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := fill(d, files, uid, gid); err != nil {
		return "", errors.Join(err, discard(root, d, dir))
	}
	if err := link(root, dir, files); err != nil {
		return "", errors.Join(err, discard(root, d, dir))
	}
	if err := d.Chmod(".", finished); err != nil {
		return "", errors.Join(err, discard(root, d, dir))
	}
	if err := root.Rename(newLink, dataLink); err != nil {
		return "", errors.Join(err, discard(root, d, dir))
	}
	return dir, nil
}

// enter opens a directory of the agent's own, which has one of the modes. That says that all in it is the agent's as well.
func enter(root *os.Root, name string, modes ...fs.FileMode) (*os.Root, error) {
	d, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	st, err := d.Stat(".")
	if err == nil && !(own(st) && slices.Contains(modes, st.Mode().Perm())) {
		err = fmt.Errorf("%s is not the agent's directory: mode %v; the pod has put another in its place", name, st.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func own(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

func fill(d *os.Root, files []file, uid, gid int) error {
	for _, f := range files {
		if err := create(d, f, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// create gives the file its owner last: after that it is no longer the agent's to change.
func create(d *os.Root, f file, uid, gid int) (err error) {
	out, err := d.OpenFile(f.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.Write(f.content); err != nil {
		return err
	}
	if err := out.Chmod(f.mode); err != nil { // whatever the umask
		return err
	}
	return out.Chown(uid, gid)
}

// link has each file's name lead into ..data, and makes the link that becomes ..data.
func link(root *os.Root, dir string, files []file) error {
	for _, f := range files {
		if err := point(root, f.name, dataLink+"/"+f.name); err != nil {
			return err
		}
	}
	return point(root, newLink, dir)
}

// point makes a link, in place of whatever the pod has put there, but for a directory that is not empty: the agent does
// not go down into what the pod has made.
func point(root *os.Root, name, target string) error {
	if have, err := root.Readlink(name); err == nil && have == target {
		return nil
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, name)
}

// sweep removes the agent's directories of earlier times, those of an agent that died while it wrote among them. What is
// the pod's own it leaves alone.
func sweep(root *os.Root, keep string) error {
	all, err := list(root, most)
	if err != nil {
		return err
	}
	var errs error
	for _, e := range all {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || e.Name() == keep {
			continue
		}
		if st, err := root.Lstat(e.Name()); err != nil || !own(st) {
			continue
		}
		d, err := enter(root, e.Name(), unfinished, finished)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		errs = errors.Join(errs, discard(root, d, e.Name()), d.Close())
	}
	return errs
}

// discard removes a directory that the agent has made, with its files. These go wherever the pod has moved it.
func discard(root, d *os.Root, name string) error {
	files, err := list(d, most)
	for _, f := range files {
		err = errors.Join(err, d.Remove(f.Name()))
	}
	if e := root.Remove(name); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// most is how many entries of a directory are looked at: a pod may make millions. One that has more of its own than this
// keeps its earlier certificates as well.
const most = 10_000

// list returns the first entries of a directory.
func list(d *os.Root, n int) ([]fs.DirEntry, error) {
	f, err := d.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(n)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	return entries, err
}

// check returns nil if ..data leads to what an agent has written, with a certificate that has not ended at the time now.
func check(root *os.Root, now time.Time) error {
	dir, err := root.Readlink(dataLink)
	if err != nil {
		return err
	}
	d, err := enter(root, dir, finished)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.Lstat(keyFile); err != nil {
		return err
	}
	cert, err := leaf(d)
	if err != nil {
		return err
	}
	if !now.Before(cert.NotAfter) {
		return fmt.Errorf("the certificate has ended at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// leaf reads the certificate. Whose file it is may lock it, or write what he likes into it, but no more than is read.
func leaf(d *os.Root) (*x509.Certificate, error) {
	f, err := d.OpenFile(certFile, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	chain, err := io.ReadAll(io.LimitReader(f, 256<<10))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate", certFile)
	}
	return x509.ParseCertificate(block.Bytes)
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
