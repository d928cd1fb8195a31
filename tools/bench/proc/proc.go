// Package proc reads from the kernel what a process has cost.
package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of CPU times in /proc, the same on every Linux that Go runs on.
const tick = time.Second / 100

// Times is the processor time that a process has used, all its threads together.
type Times struct{ User, System time.Duration }

// Sum is the time in all. The kernel scales it to the scheduler's exact sum, so that only the last digit is rounded.
func (t Times) Sum() time.Duration { return t.User + t.System }

// Since returns what was used after an earlier reading.
func (t Times) Since(before Times) Times {
	return Times{t.User - before.User, t.System - before.System}
}

// CPU reads the processor time of a process, to the nanosecond: what /proc says is rounded to its tick, and a change costs less.
func CPU(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: the kernel's number of a process's clock, as clock_getcpuclockid(3) makes it
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("CPU of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// TimesOf reads the processor time of a process, in the program and in the kernel.
func TimesOf(pid int) (Times, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Times{}, fmt.Errorf("CPU of process %d: %w", pid, err)
	}
	// The name, in parentheses, may hold anything; user and system time are the 12th and 13th field behind it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return Times{}, fmt.Errorf("CPU of process %d: %d fields in its stat", pid, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return Times{}, fmt.Errorf("CPU of process %d: %w", pid, err)
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return Times{}, fmt.Errorf("CPU of process %d: %w", pid, err)
	}
	return Times{time.Duration(user) * tick, time.Duration(system) * tick}, nil
}

// Memory is what of a process is resident, in bytes.
type Memory struct {
	Resident int64 `json:"residentBytes"`
	Own      int64 `json:"ownBytes"` // without pages of files, such as the program's text
	Peak     int64 `json:"peakBytes"`
}

// MemoryOf reads the resident memory of a process.
func MemoryOf(pid int) (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	var m Memory
	want := map[string]*int64{"VmRSS": &m.Resident, "RssAnon": &m.Own, "VmHWM": &m.Peak}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		if into := want[name]; into != nil {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return Memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
			}
			*into = kib << 10
		}
	}
	return m, nil
}

// Process is a running program.
type Process struct {
	PID     int
	Program string   // base name of its first argument
	Args    []string // all arguments
}

// All lists the processes of this machine, those of containers too.
func All() ([]Process, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil || len(line) == 0 {
			continue // it has ended, or is the kernel's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		out = append(out, Process{pid, filepath.Base(args[0]), args})
	}
	return out, nil
}
