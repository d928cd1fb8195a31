// Package namespace gives a node network, mount and UTS namespaces of its own. They are held by a process and named by its
// pid: nothing is pinned in the machine's file system, so when the last process in them ends they are gone, mounts,
// interfaces, nftables and all.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// New are the clone flags of a process that begins in namespaces of its own.
const New = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS

// Spec is what a holder makes of its new namespaces.
type Spec struct {
	Hostname string `json:"hostname"`
	// Binds are mounted from the first directory over the second.
	Binds [][2]string `json:"binds,omitempty"`
	// Tmpfs are directories that begin empty.
	Tmpfs []string `json:"tmpfs,omitempty"`
	// Sysctls are paths under /proc/sys. One that the kernel does not have is skipped.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Hold sets up the namespaces that this process began in, says so on ready, and stays. Processes in a mount namespace keep
// it alive by themselves; Hold is there for the time before there are any, and to be found by its pid.
func Hold(spec Spec, ready io.WriteCloser) error {
	if err := setUp(spec); err != nil {
		_, _ = io.WriteString(ready, err.Error())
		return err
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	forever := make(chan os.Signal, 1)
	signal.Notify(forever, unix.SIGTERM)
	<-forever
	return nil
}

func setUp(spec Spec) error {
	// Private first, or our mounts would reach the machine. Shared last, so that every mount becomes a peer group of
	// its own: binds made from a shared root would show what is mounted in them a second time at their source.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, bind := range spec.Binds {
		if err := unix.Mount(bind[0], bind[1], "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", bind[0], bind[1], err)
		}
	}
	for _, dir := range spec.Tmpfs {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs over %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for name, value := range spec.Sysctls {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}

// Enter moves the calling thread into the namespaces of a process, for good. The caller must go on to exec: the
// process's other threads stay behind.
func Enter(pid int) error {
	runtime.LockOSThread()
	// All descriptors first: /proc of the target may look different from inside.
	kinds := []struct {
		name string
		flag int
	}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"mnt", unix.CLONE_NEWNS}}
	fds := make([]int, len(kinds))
	for i, kind := range kinds {
		fd, err := open(pid, kind.name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	// A thread that shares its root and working directory with others may not change mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	for i, kind := range kinds {
		if err := unix.Setns(fds[i], kind.flag); err != nil {
			return fmt.Errorf("enter the %s namespace of process %d: %w", kind.name, pid, err)
		}
	}
	return nil
}

// Dialer connects from inside the network namespace of a process.
type Dialer struct {
	home, away int
	dialer     net.Dialer
}

// NewDialer keeps the namespace open, so that it can be entered even after the process has ended.
func NewDialer(pid int) (*Dialer, error) {
	home, err := open(os.Getpid(), "net")
	if err != nil {
		return nil, err
	}
	away, err := open(pid, "net")
	if err != nil {
		return nil, err
	}
	return &Dialer{home: home, away: away}, nil
}

// DialContext connects to address, which must be numeric: a socket belongs to the namespace of the thread that makes it,
// and only then is it made on this one.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	runtime.LockOSThread()
	if err := unix.Setns(d.away, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter the network namespace: %w", err)
	}
	conn, err := d.dialer.DialContext(ctx, network, address)
	if back := unix.Setns(d.home, unix.CLONE_NEWNET); back != nil {
		// Still locked: the runtime ends the thread with the goroutine, rather than reuse it in the wrong namespace.
		return conn, errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return conn, err
}

func open(pid int, kind string) (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open the %s namespace of process %d: %w", kind, pid, err)
	}
	return fd, nil
}
