// Package proc starts processes that outlive the command that started them, and later knows them again.
package proc

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Process is a recorded process. The start time tells it from a later process that was given the same pid.
type Process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// Options of a process to start.
type Options struct {
	Name string
	Log  string
	Env  []string
	// Files are inherited from descriptor 3 on.
	Files []*os.File
	// Cloneflags are the new namespaces that it begins in.
	Cloneflags uintptr
}

// Start runs argv in a session of its own, so that it survives its parent's exit and terminal.
func Start(opts Options, argv ...string) (Process, error) {
	log, err := os.OpenFile(opts.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return Process{}, fmt.Errorf("open the log of %s: %w", opts.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = opts.Env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = opts.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: opts.Cloneflags}
	if err := cmd.Start(); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", opts.Name, err)
	}
	// Reaped here only for as long as we live; afterwards init does.
	go func() { _ = cmd.Wait() }()
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return Process{}, fmt.Errorf("%s ended at once; see %s: %w", opts.Name, opts.Log, err)
	}
	return Process{Name: opts.Name, PID: cmd.Process.Pid, Start: start}, nil
}

// Alive says whether the recorded process still runs.
func (p Process) Alive() bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// Kill ends the process, if it is still the one recorded.
func (p Process) Kill() {
	if p.Alive() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
}

// startTime is when a process began, in clock ticks after boot. A zombie counts as gone when its last thread has ended: until then its ports and files are in use.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(stat))
}

// parseStat reads /proc/<pid>/stat, in which the second field, the command, may itself hold spaces and brackets.
func parseStat(stat string) (uint64, error) {
	_, rest, ok := cutLast(stat, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("unexpected process status %q", stat)
	}
	if fields[0] == "X" || fields[0] == "Z" && (fields[17] == "0" || fields[17] == "1") {
		return 0, fmt.Errorf("process has ended")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
