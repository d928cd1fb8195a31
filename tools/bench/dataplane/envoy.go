package dataplane

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
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

// injected returns the arguments and environment that injection gave a pod's Envoy, with what the kubelet would fill in
// filled in, one worker, and the socket elsewhere.
func injected(pod *core.Pod, ip, socket string) (args, env []string, err error) {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c core.Container) bool { return c.Name == mesh.ProxyContainer })
	if i < 0 {
		return nil, nil, fmt.Errorf("pod %s was given no proxy", pod.Name)
	}
	container := pod.Spec.InitContainers[i]
	fields := map[string]string{"status.podIP": ip, "metadata.name": pod.Name, "metadata.namespace": pod.Namespace}
	replace := []string{path.Join(mesh.IdentityMountPath, mesh.AgentSocket), socket}
	for _, e := range container.Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value = fields[e.ValueFrom.FieldRef.FieldPath]
		}
		env = append(env, e.Name+"="+value)
		replace = append(replace, "$("+e.Name+")", value)
	}
	r := strings.NewReplacer(replace...)
	for _, a := range container.Args {
		args = append(args, r.Replace(a))
	}
	if i := slices.Index(args, "--concurrency"); i >= 0 && i+1 < len(args) {
		args[i+1] = "1"
	}
	return args, env, nil
}
