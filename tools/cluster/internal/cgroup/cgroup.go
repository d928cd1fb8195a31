// Package cgroup keeps everything a cluster runs in one tree of control groups of its own. Whatever a crash leaves behind
// (containers outlive their shims) is found there, and only there.
package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Tree is a control group of the same path in every hierarchy of the machine.
type Tree struct {
	path  string
	roots []string // hierarchies to use
	all   []string // hierarchies in which something of the tree may be: in a hybrid setup runc makes groups on v2 too
}

// Open finds the machine's hierarchies. It makes nothing.
func Open(path string) (Tree, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Tree{}, fmt.Errorf("read the mount table: %w", err)
	}
	v1, v2 := hierarchies(string(mounts))
	tree := Tree{path: path, roots: v1, all: append(v1, v2...)}
	if len(tree.all) == 0 {
		return Tree{}, errors.New("no cgroup hierarchy is mounted")
	}
	// In a hybrid setup the controllers, and so the container runtime, are on v1.
	if len(v1) == 0 {
		tree.roots = v2
	}
	return tree, nil
}

// hierarchies lists the mount points of the v1 hierarchies and of the unified one.
func hierarchies(mountinfo string) (v1, v2 []string) {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 1 {
			continue
		}
		switch right[0] {
		case "cgroup":
			v1 = append(v1, left[4])
		case "cgroup2":
			v2 = append(v2, left[4])
		}
	}
	return v1, v2
}

// Make creates the group, with its parents, in every hierarchy.
func (t Tree) Make() error {
	for _, root := range t.roots {
		dir := root
		for part := range strings.SplitSeq(strings.Trim(t.path, "/"), "/") {
			if err := delegate(dir); err != nil {
				return err
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := inheritCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCPUSet copies the CPUs and memory nodes of a v1 parent: a new cpuset is empty, and admits no process.
func inheritCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) || len(bytes.TrimSpace(value)) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// delegate hands a v2 group's controllers to its children; on v1 there is nothing to do.
func delegate(dir string) error {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("delegate cgroup controller %s below %s: %w", c, dir, err)
		}
	}
	return nil
}

// Join moves the calling process into the group.
func (t Tree) Join() error {
	for _, root := range t.roots {
		if err := os.WriteFile(filepath.Join(root, t.path, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Remove kills every process in the tree and removes it. It is no error when nothing is there.
func (t Tree) Remove(ctx context.Context) error {
	for {
		pids, err := t.pids()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("end the processes in cgroup %s (left: %v): %w", t.path, pids, err)
		}
	}
	for _, root := range t.all {
		groups, err := subgroups(filepath.Join(root, t.path))
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(groups) {
			if err := removeGroup(ctx, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeGroup tries until the kernel has let go of a group's last process, which it does a moment after it ended.
func removeGroup(ctx context.Context, dir string) error {
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}

func (t Tree) pids() ([]int, error) {
	seen := map[int]bool{}
	var pids []int
	for _, root := range t.all {
		groups, err := subgroups(filepath.Join(root, t.path))
		if err != nil {
			return nil, err
		}
		for _, dir := range groups {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				continue // removed under our hands
			}
			for _, field := range strings.Fields(string(procs)) {
				// A pid of 0 is a process outside our pid namespace: not ours to end.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids, nil
}

// subgroups lists a group and all below it, parents first.
func subgroups(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("walk cgroup: %w", err)
	}
	return dirs, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
