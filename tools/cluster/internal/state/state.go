// Package state is a cluster's directory on this machine, and the record in it of what runs. It is the same for every
// checkout, so that what one left behind another finds.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/binaries"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/proc"
)

const base = "/var/lib/bulwark-cluster"

// Dir is a cluster's directory.
type Dir struct {
	Name string
	Path string
}

// Record is what a finished `up` leaves for later commands.
type Record struct {
	// Boot is the machine's boot: pids of an earlier one mean nothing.
	Boot string `json:"boot"`
	// Spec is a hash of all that went into the cluster.
	Spec      string           `json:"spec"`
	Families  network.Families `json:"families,omitempty"`
	Port      int              `json:"port"`
	Binaries  binaries.Set     `json:"binaries"`
	Nodes     []Node           `json:"nodes"`
	Processes []proc.Process   `json:"processes"`
	// MadeDirs are the mount points that were not there before on the machine.
	MadeDirs []string `json:"madeDirs,omitempty"`
	Ready    bool     `json:"ready"`
}

// Node of a cluster. Holder is the process that holds its namespaces.
type Node struct {
	Name   string       `json:"name"`
	IP     string       `json:"ip"`
	Socket string       `json:"socket"`
	Holder proc.Process `json:"holder"`
}

// Open names the directory; it makes nothing.
func Open(name string) (Dir, error) {
	if name == "" || strings.ContainsFunc(name, notNameRune) {
		return Dir{}, fmt.Errorf("cluster name %q: want lower-case letters, digits and dashes", name)
	}
	return Dir{Name: name, Path: filepath.Join(base, name)}, nil
}

func notNameRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
}

// Sub is a path in the directory.
func (d Dir) Sub(parts ...string) string {
	return filepath.Join(append([]string{d.Path}, parts...)...)
}

// Log is the log file of a process.
func (d Dir) Log(process string) string { return d.Sub("logs", process+".log") }

// Lock keeps two commands from changing a cluster at once.
func (d Dir) Lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(base, 0o700); err != nil {
			return nil, fmt.Errorf("make the state directory: %w", err)
		}
		file, err := os.OpenFile(d.lockFile(), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a `down` removed the directory in between
		}
		if err != nil {
			return nil, fmt.Errorf("open the cluster's lock: %w", err)
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("wait for the cluster's lock: %w", err), file.Close())
		}
		// A `down` that we waited for has removed the file: what we hold then excludes nobody.
		if same(file, d.lockFile()) {
			return func() { file.Close() }, nil
		}
		file.Close()
	}
}

func (d Dir) lockFile() string { return d.Path + ".lock" }

func same(file *os.File, path string) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}

// Forget removes the lock, which the caller holds, and the directory of all clusters when this was the last.
func (d Dir) Forget() error {
	if err := os.Remove(d.lockFile()); err != nil {
		return fmt.Errorf("remove the cluster's lock: %w", err)
	}
	if err := os.Remove(base); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the state directory: %w", err)
	}
	return nil
}

// Load reads the record. When there is none, it is empty.
func (d Dir) Load() (Record, error) {
	var record Record
	content, err := os.ReadFile(d.Sub("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return record, nil
	}
	if err != nil {
		return record, fmt.Errorf("read the cluster's record: %w", err)
	}
	// One torn by a crash is as good as none: the control groups tell what is left.
	if json.Unmarshal(content, &record) != nil {
		return Record{}, nil
	}
	return record, nil
}

// Save writes the record, whole or not at all.
func (d Dir) Save(record Record) error {
	content, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the cluster's record: %w", err)
	}
	partial := d.Sub("state.json.partial")
	if err := os.WriteFile(partial, content, 0o600); err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	if err := os.Rename(partial, d.Sub("state.json")); err != nil {
		return fmt.Errorf("put the cluster's record in place: %w", err)
	}
	return nil
}

// Remove deletes the directory.
func (d Dir) Remove() error {
	if err := os.RemoveAll(d.Path); err != nil {
		return fmt.Errorf("remove the cluster's state: %w", err)
	}
	return nil
}

// Others says whether this machine has another cluster.
func (d Dir) Others() bool {
	entries, err := os.ReadDir(base)
	if err != nil {
		return false
	}
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != d.Name {
			return true
		}
	}
	return false
}

// Alive says whether every recorded process of this boot still runs; if not, it names one that does not.
func (r Record) Alive() (bool, string) {
	if boot, err := BootID(); err != nil || boot != r.Boot {
		return false, "the machine was restarted"
	}
	for _, p := range r.Processes {
		if !p.Alive() {
			return false, p.Name + " has ended"
		}
	}
	return true, ""
}

// BootID names the machine's boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
