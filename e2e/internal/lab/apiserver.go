package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrElsewhere is why a process of the cluster cannot be stopped or killed from here.
var ErrElsewhere = errors.New("the cluster's processes are not processes of this machine")

// PauseAPIServer stops the API server's process in the middle of what it does (SIGSTOP): connections to it stay open and
// nothing comes back. It goes on when resume is called, and also when this process ends in whatever way. On a cluster
// whose API server does not run on this machine it returns ErrElsewhere.
func (l *Lab) PauseAPIServer() (resume func() error, err error) {
	pid, err := l.apiServer()
	if err != nil {
		return nil, err
	}
	return stopped("the API server", pid)
}

// stopped stops processes until resume is called or this process ends.
func stopped(what string, pids ...int) (resume func() error, err error) {
	args := []string{"-c", `kill -STOP "$@" && echo stopped && read -r _; kill -CONT "$@"`, "sh"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	watchdog := exec.Command("sh", args...)
	input, err := watchdog.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := watchdog.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := watchdog.Start(); err != nil {
		return nil, err
	}
	resume = func() error { return errors.Join(input.Close(), watchdog.Wait()) }
	if _, err := output.Read(make([]byte, 16)); err != nil {
		return nil, errors.Join(fmt.Errorf("stopping %s, processes %v: %w", what, pids, err), resume())
	}
	return resume, nil
}

// apiServer finds the process by the CA that it and the kubeconfig have in common.
func (l *Lab) apiServer() (int, error) {
	ca := l.Config.CAData
	if len(ca) == 0 && l.Config.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(l.Config.CAFile); err != nil {
			return 0, err
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, file := range processes {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(content), "\x00")
		if filepath.Base(args[0]) != "kube-apiserver" {
			continue
		}
		for _, arg := range args {
			path, ok := strings.CutPrefix(arg, "--client-ca-file=")
			if !ok {
				continue
			}
			if theirs, err := os.ReadFile(path); err == nil && len(ca) > 0 && bytes.Equal(bytes.TrimSpace(theirs), bytes.TrimSpace(ca)) {
				return strconv.Atoi(filepath.Base(filepath.Dir(file)))
			}
		}
	}
	return 0, ErrElsewhere
}

// RestartAPIServer kills the API server's process and starts it again: its watch cache, by which it tells a client that comes
// back what has happened meanwhile, begins anew. It returns when the cluster is healthy, and ErrElsewhere as PauseAPIServer does.
func (l *Lab) RestartAPIServer(ctx context.Context) error {
	if _, err := l.apiServer(); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(filepath.Dir(l.meshctl), "cluster"), "restart", "kube-apiserver").CombinedOutput()
	if err != nil {
		return fmt.Errorf("restarting the API server: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
