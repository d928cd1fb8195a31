package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// samplesPerSecond of each processor. It is no multiple of anything that comes at a round rate.
const samplesPerSecond = 997

// Where a sample was taken. Envoy is one program without symbols, so that is as far as its own code can be told apart.
const (
	inKernel  = "the kernel"
	inEnvoy   = "Envoy"
	inLibrary = "libraries of C"
	inSandbox = "the sandbox" // code that was made while Envoy runs: WebAssembly modules
)

var places = []string{inKernel, inEnvoy, inLibrary, inSandbox}

// profile counts samples by the process and the place.
type profile map[int]map[string]int

// profiled runs something, and samples with Linux' perf by the processors' clocks meanwhile what these execute, as it can be done without hardware counters.
func profiled(ctx context.Context, dir string, run func() error) (profile, error) {
	file := filepath.Join(dir, "perf.data")
	defer os.Remove(file)
	var said bytes.Buffer
	record := exec.CommandContext(ctx, "perf", "record", "-q", "-a", "-e", "cpu-clock", "-F", strconv.Itoa(samplesPerSecond), "-o", file)
	record.Stdout, record.Stderr = &said, &said
	record.Cancel, record.WaitDelay = func() error { return record.Process.Signal(os.Interrupt) }, 10*time.Second
	if err := record.Start(); err != nil {
		return nil, fmt.Errorf("sampling, for which perf is needed (Debian: linux-perf): %w", err)
	}
	err := run()
	_ = record.Process.Signal(os.Interrupt) // it may have ended, which Wait says
	var ended *exec.ExitError
	if failed := record.Wait(); failed != nil && !(errors.As(failed, &ended) && ended.ExitCode() == -1) { // by the signal
		err = errors.Join(err, fmt.Errorf("perf record: %w: %s", failed, &said))
	}
	if err != nil {
		return nil, err
	}
	text, err := exec.CommandContext(ctx, "perf", "script", "-i", file, "-F", "pid,ip,dso").Output()
	if err != nil {
		return nil, fmt.Errorf("perf script: %w", err)
	}
	return read(text)
}

// read takes lines of a process, an address and, in parentheses, the file that is mapped there.
func read(text []byte) (profile, error) {
	out := profile{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		first, rest, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		pid, err := strconv.Atoi(first)
		if err != nil {
			return nil, fmt.Errorf("no process in perf's line %q", lines.Text())
		}
		if out[pid] == nil {
			out[pid] = map[string]int{}
		}
		_, mapped, _ := strings.Cut(rest, "(")
		place := inSandbox
		switch mapped = strings.TrimSuffix(mapped, ")"); {
		case strings.HasPrefix(mapped, "[kernel"):
			place = inKernel
		case filepath.Base(mapped) == "envoy":
			place = inEnvoy
		case strings.HasPrefix(mapped, "[vdso"), strings.Contains(mapped, ".so"):
			place = inLibrary
		}
		out[pid][place]++
	}
	return out, lines.Err()
}

// of is the time that processes were seen in each place.
func (p profile) of(processes []program) map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, r := range processes {
		for place, n := range p[r.cmd.Process.Pid] {
			out[place] += time.Duration(n) * time.Second / samplesPerSecond
		}
	}
	return out
}
