// Package sidecar starts a pod's Envoy as injection says, without the pod.
package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Arguments returns the arguments and environment that injection gave a pod's Envoy, with what the kubelet would fill in
// filled in, one worker, and the agent's socket elsewhere.
func Arguments(pod *core.Pod, ip, socket string) (args, env []string, err error) {
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

// Module writes, on this machine, the module that an agent leaves for a pod's Envoy, where that looks for it. Remove takes it away again.
func Module() (remove func() error, err error) {
	if err := os.MkdirAll(mesh.IdentityMountPath, 0o755); err != nil {
		return nil, fmt.Errorf("a place for the proxies' module: %w", err)
	}
	remove = func() error {
		err := closer.Remove(mesh.IdentityMountPath)
		_ = os.Remove(mesh.IdentityMountPath) // unless somebody else has something there
		return err
	}
	return remove, closer.Write(mesh.IdentityMountPath)
}

// Change changes the bootstrap in the arguments of an Envoy.
func Change(args []string, change func(bootstrap map[string]any)) error {
	i := slices.Index(args, "--config-yaml") + 1
	if i == 0 || i >= len(args) {
		return errors.New("the proxy's arguments have no --config-yaml")
	}
	var bootstrap map[string]any
	if err := json.Unmarshal([]byte(args[i]), &bootstrap); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	change(bootstrap)
	text, err := json.Marshal(bootstrap)
	args[i] = string(text)
	return err
}
