package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// KillContainer kills all processes of a running container, without a chance to say good-bye (SIGKILL). It returns
// ErrElsewhere on a cluster whose containers do not run on this machine.
func (l *Lab) KillContainer(pod *corev1.Pod, container string) error {
	pids, err := processes(pod, container)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("killing process %d of pod %s/%s: %w", pid, pod.Namespace, pod.Name, err)
		}
	}
	return nil
}

// PauseContainer stops all processes of a running container where they are, as PauseAPIServer does that one.
func (l *Lab) PauseContainer(pod *corev1.Pod, container string) (resume func() error, err error) {
	pids, err := processes(pod, container)
	if err != nil {
		return nil, err
	}
	return stopped(fmt.Sprintf("%s of pod %s/%s", container, pod.Namespace, pod.Name), pids...)
}

// ContainerRoot returns the directory in which this machine sees the files of a running container. It returns ErrElsewhere on
// a cluster whose containers do not run on this machine.
func (l *Lab) ContainerRoot(pod *corev1.Pod, container string) (string, error) {
	pids, err := processes(pod, container)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/root", pids[0]), nil
}

// processes are those whose control group is named for the container.
func processes(pod *corev1.Pod, container string) ([]int, error) {
	id := ""
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if c.Name == container && c.State.Running != nil {
			_, id, _ = strings.Cut(c.ContainerID, "://")
		}
	}
	if id == "" {
		return nil, fmt.Errorf("container %s of pod %s/%s does not run", container, pod.Namespace, pod.Name)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(content, []byte(id)) {
			continue // it has ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return nil, ErrElsewhere
	}
	return pids, nil
}
