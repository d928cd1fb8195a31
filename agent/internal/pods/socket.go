package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// socket is a listening Unix socket in a volume's directory.
type socket struct {
	path     string
	inode    uint64
	listener *net.UnixListener
	shut     atomic.Bool
}

// listen makes the directory, the socket in it, and a file with the module of package closer, of which Pilot is told that it is there. The socket gets its owner and mode under another name, so that
// nobody connects before; an older one is replaced in one step.
func listen(v Volume) (*socket, error) {
	// The volume's directory is not secret, but kubelet's directories above it let only root through.
	if err := os.MkdirAll(v.Target, 0o755); err != nil {
		return nil, fmt.Errorf("directory of volume %s: %w", v.ID, err)
	}
	if err := closer.Write(v.Target); err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.ID, err)
	}
	dir, err := os.Open(v.Target)
	if err != nil {
		return nil, fmt.Errorf("directory of volume %s: %w", v.ID, err)
	}
	defer dir.Close()
	const temporary = ".agent.sock.new"
	if err := os.Remove(filepath.Join(v.Target, temporary)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket of volume %s: %w", v.ID, err)
	}
	// kubelet's paths are longer than the address of a Unix socket may be; the descriptor's is not.
	address := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket of volume %s: %w", v.ID, err)
	}
	l.SetUnlinkOnClose(false)
	s := &socket{path: filepath.Join(v.Target, mesh.AgentSocket), listener: l}
	if err := s.place(filepath.Join(v.Target, temporary), v.Any); err != nil {
		return nil, errors.Join(fmt.Errorf("socket of volume %s: %w", v.ID, err), l.Close())
	}
	return s, nil
}

// place gives the socket to the proxy's user alone, or to every user of the containers that mount it.
func (s *socket) place(temporary string, everyone bool) error {
	mode := fs.FileMode(0o600)
	if everyone {
		mode = 0o666
	}
	if err := os.Chmod(temporary, mode); err != nil {
		return err
	}
	if err := os.Chown(temporary, mesh.ProxyUID, mesh.ProxyGID); err != nil {
		return err
	}
	if err := os.Rename(temporary, s.path); err != nil {
		return err
	}
	var err error
	s.inode, err = inode(s.path)
	return err
}

// intact reports whether the socket in the directory is still this one.
func (s *socket) intact() bool {
	now, err := inode(s.path)
	return err == nil && now == s.inode && !s.shut.Load()
}

func (s *socket) close() {
	s.shut.Store(true)
	_ = s.listener.Close() // there is nothing to do about an error
}

func (s *socket) closed() bool { return s.shut.Load() }

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// clean removes what listen made.
func clean(target string) error {
	if err := closer.Remove(target); err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(target, mesh.AgentSocket), filepath.Join(target, ".agent.sock.new"), target} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the volume's directory: %w", err)
		}
	}
	return nil
}

func exists(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.IsDir()
}
