package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Forward opens a way to a port of a pod and returns its address here. It is open until stop is called.
func (l *Lab) Forward(ctx context.Context, pod *corev1.Pod, port int) (address string, stop func(), err error) {
	fail := func(err error) (string, func(), error) {
		return "", nil, fmt.Errorf("port-forward to port %d of pod %s/%s: %w", port, pod.Namespace, pod.Name, err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(l.Config)
	if err != nil {
		return fail(err)
	}
	url := l.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stopped, ready := make(chan struct{}), make(chan struct{})
	var trouble bytes.Buffer
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stopped, ready, io.Discard, &trouble)
	if err != nil {
		return fail(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- forwarder.ForwardPorts() }() // ends when stopped is closed or the connection breaks
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	select {
	case <-ready:
	case err := <-failed:
		return fail(err)
	case <-ctx.Done():
		close(stopped)
		return fail(ctx.Err())
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		close(stopped)
		return fail(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), func() { close(stopped) }, nil
}

// Component returns the running pods of a component of the control plane (pilot, citadel, mixer, agent).
func (l *Lab) Component(ctx context.Context, name string) ([]corev1.Pod, error) {
	list, err := l.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + name})
	if err != nil {
		return nil, err
	}
	var running []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			running = append(running, pod)
		}
	}
	if len(running) == 0 {
		return nil, fmt.Errorf("no running pod of %s", name)
	}
	return running, nil
}
