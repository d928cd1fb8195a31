package applications

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// collect writes the logs of every container of namespaces into a directory, and the answers of those proxies that can be asked.
func collect(ctx context.Context, dir string, namespaces ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var failed error
	save := func(name string, content []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o644)
		}
		failed = errors.Join(failed, err)
	}
	for _, namespace := range namespaces {
		pods, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		for _, pod := range pods.Items {
			for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
				content, err := cluster.CoreV1().Pods(namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: c.Name}).DoRaw(ctx)
				save(strings.Join([]string{namespace, pod.Name, c.Name, "log"}, "."), content, err)
			}
		}
	}
	if out, err := cluster.Meshctl(ctx, "status"); err == nil {
		save("status.txt", out, nil)
	}
	return failed
}
