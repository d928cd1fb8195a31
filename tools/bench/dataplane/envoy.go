package dataplane

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
)

// program is a running Envoy or application.
type program struct{ cmd *exec.Cmd }

func (p program) cost() (proc.Memory, error) { return proc.MemoryOf(p.cmd.Process.Pid) }

func start(ctx context.Context, ns netns.Namespace, o netns.Options, log string, env []string, binary string, args ...string) (program, error) {
	cmd := ns.Command(ctx, o, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := os.Create(log)
	if err != nil {
		return program{}, fmt.Errorf("log of %s: %w", binary, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return program{}, fmt.Errorf("starting %s: %w", binary, err)
	}
	return program{cmd}, nil
}
