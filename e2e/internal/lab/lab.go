// Package lab is how the tests and the demo reach a cluster: apply, execute, wait, and meshctl as a user runs it.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
)

const fieldManager = "bulwark-e2e"

// Lab is one cluster. It is safe for concurrent use.
type Lab struct {
	kubernetes.Interface
	Config  *rest.Config
	Tag     string // of the images
	dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
	meshctl string
}

// Open connects to the cluster of KUBECONFIG. Tag is that of the images; meshctl is bin/meshctl of this checkout.
func Open(tag string) (*Lab, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("KUBECONFIG names no cluster (make cluster): %w", err)
	}
	config.QPS = -1 // no limit of its own, whose errors would hide what is waited for
	config.WarningHandler = rest.NoWarnings{}
	klog.SetLogger(logr.Discard()) // forwarded connections that end are not news
	l := &Lab{Config: config, Tag: tag}
	if l.Interface, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if l.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	l.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(l.Discovery()))
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..", "..")
	l.meshctl = filepath.Join(root, "bin", "meshctl")
	if _, err := os.Stat(l.meshctl); err != nil { // a binary built with -trimpath does not know its checkout
		l.meshctl = filepath.Join("bin", "meshctl")
	}
	return l, nil
}

// values are those of the installation: certificates of a minute, so that their rotation can be watched; key servers in the cluster; a former name of the mesh; and external authorizers:
// one in the mesh, one outside of it, Open Policy Agent, and some that are nowhere, without whose answer nothing passes, or all, or who are told with another status.
const values = `
citadel: {workloadTTL: 1m}
keyServers: {privateHosts: ["*.svc.cluster.local"]}
trustDomainAliases: [` + FormerDomain + `]
extensionProviders:
- {name: in-mesh, envoyExtAuthzGrpc: {service: authorizer.e2e-custom.svc.cluster.local, port: 9191, timeout: 2s}}
- {name: outside, envoyExtAuthzHttp: {service: authorizer.e2e-custom-outside.svc.cluster.local, port: 8080, pathPrefix: /check, includeRequestHeadersInCheck: [x-answer]}}
- {name: opa, envoyExtAuthzGrpc: {service: opa.opa.svc.cluster.local, port: 9191, timeout: 2s}}
- {name: nowhere, envoyExtAuthzGrpc: {service: authorizer.nowhere.svc.cluster.local, port: 9191}}
- {name: nowhere-open, envoyExtAuthzGrpc: {service: authorizer.nowhere.svc.cluster.local, port: 9191, failOpen: true}}
- {name: nowhere-503, envoyExtAuthzGrpc: {service: authorizer.nowhere.svc.cluster.local, port: 9191, statusOnError: "503"}}
`

// FormerDomain is an alias of the mesh's trust domain in the installation.
const FormerDomain = "former.example"

// Install runs meshctl install as the claims need it.
func (l *Lab) Install(ctx context.Context, out io.Writer, set ...string) error {
	dir, err := os.MkdirTemp("", "bulwark-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		return err
	}
	args := []string{"install", "--reset", "--values", file, "--set", "image.tag=" + l.Tag}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	return l.MeshctlTo(ctx, out, args...)
}

// Apply applies the objects of a YAML stream.
func (l *Lab) Apply(ctx context.Context, manifest string) error {
	return l.each(manifest, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		_, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		return err
	})
}

// Delete deletes the objects of a YAML stream, if they are there.
func (l *Lab) Delete(ctx context.Context, manifest string) error {
	return l.each(manifest, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

func (l *Lab) each(manifest string, do func(dynamic.ResourceInterface, *unstructured.Unstructured) error) error {
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a manifest: %w", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		gvk := o.GroupVersionKind()
		mapping, err := l.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if meta.IsNoMatchError(err) {
			l.mapper.Reset()
			mapping, err = l.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		}
		if err != nil {
			return err
		}
		var r dynamic.ResourceInterface = l.dynamic.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			r = l.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
		}
		if err := do(r, o); err != nil {
			return fmt.Errorf("%s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
	}
}

// Poll calls check until it returns no error, or ctx ends; then the error is the last one of check.
func Poll(ctx context.Context, check func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		if err := check(ctx); err != nil {
			var final stop
			if errors.As(err, &final) {
				last = nil
				return false, final.error
			}
			if ctx.Err() == nil || last == nil {
				last = err
			}
			return false, nil
		}
		return true, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("gave up waiting: %w", last)
	}
	return err
}

// PollFor is Poll with a deadline of its own.
func PollFor(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return Poll(ctx, check)
}

// Ready waits until every deployment and stateful set of a namespace is, with pods of its present template alone, and until each of its Services'
// slices has the ready pods that it selects: the controller that writes slices is later than the kubelet that reports a pod.
func (l *Lab) Ready(ctx context.Context, namespace string, limit time.Duration) error {
	return PollFor(ctx, limit, func(ctx context.Context) error {
		list, err := l.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range list.Items {
			if d.Status.ObservedGeneration < d.Generation || d.Status.ReadyReplicas < *d.Spec.Replicas || d.Status.Replicas != *d.Spec.Replicas ||
				d.Status.UpdatedReplicas != *d.Spec.Replicas {
				return fmt.Errorf("deployment %s/%s: %d of %d ready, %d of the present template", namespace, d.Name, d.Status.ReadyReplicas, *d.Spec.Replicas,
					d.Status.UpdatedReplicas)
			}
		}
		sets, err := l.AppsV1().StatefulSets(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, s := range sets.Items {
			if s.Status.ObservedGeneration < s.Generation || s.Status.ReadyReplicas < *s.Spec.Replicas || s.Status.UpdatedReplicas != *s.Spec.Replicas {
				return fmt.Errorf("stateful set %s/%s: %d of %d ready, %d of the present template", namespace, s.Name, s.Status.ReadyReplicas, *s.Spec.Replicas,
					s.Status.UpdatedReplicas)
			}
		}
		return l.inSlices(ctx, namespace)
	})
}

// inSlices fails if a ready pod that a Service of the namespace selects is not a ready endpoint of it.
func (l *Lab) inSlices(ctx context.Context, namespace string) error {
	services, err := l.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, service := range services.Items {
		if len(service.Spec.Selector) == 0 {
			continue
		}
		pods, err := l.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(service.Spec.Selector).String()})
		if err != nil {
			return err
		}
		written, err := l.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name})
		if err != nil {
			return err
		}
		ready := map[types.UID]bool{}
		for _, slice := range written.Items {
			for _, e := range slice.Endpoints {
				if e.TargetRef != nil && e.Conditions.Ready != nil && *e.Conditions.Ready {
					ready[e.TargetRef.UID] = true
				}
			}
		}
		for _, pod := range pods.Items {
			isReady := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			})
			if isReady && pod.DeletionTimestamp == nil && !ready[pod.UID] {
				return fmt.Errorf("no slice of service %s/%s has the ready pod %s", namespace, service.Name, pod.Name)
			}
		}
	}
	return nil
}

// Pod returns a running pod of a deployment whose pods are labelled app=NAME.
func (l *Lab) Pod(ctx context.Context, namespace, app string) (*corev1.Pod, error) {
	pods, err := l.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			return &pod, nil
		}
	}
	return nil, fmt.Errorf("no running pod of %s/%s", namespace, app)
}

// Exec runs a command in a container of an app's pod and returns its standard output.
func (l *Lab) Exec(ctx context.Context, namespace, app, container string, command ...string) ([]byte, error) {
	pod, err := l.Pod(ctx, namespace, app)
	if err != nil {
		return nil, err
	}
	return l.exec(ctx, nil, pod, container, command...)
}

// ExecAttended is Exec for a command that goes on until its standard input ends, and whose output is to be read meanwhile.
func (l *Lab) ExecAttended(ctx context.Context, stdin io.Reader, stdout io.Writer, namespace, app, container string, command ...string) error {
	pod, err := l.Pod(ctx, namespace, app)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	return l.stream(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Stderr: &stderr}, &stderr, pod, container, command...)
}

// ExecIn is Exec in a certain pod.
func (l *Lab) ExecIn(ctx context.Context, pod *corev1.Pod, container string, command ...string) ([]byte, error) {
	return l.exec(ctx, nil, pod, container, command...)
}

// ExecNoted is Exec for a command that writes to standard error when it is under way; then began is called, once.
func (l *Lab) ExecNoted(ctx context.Context, began func(), namespace, app, container string, command ...string) ([]byte, error) {
	pod, err := l.Pod(ctx, namespace, app)
	if err != nil {
		return nil, err
	}
	return l.exec(ctx, &noted{call: began}, pod, container, command...)
}

// noted calls a function at the first write.
type noted struct {
	once sync.Once
	call func()
}

func (n *noted) Write(p []byte) (int, error) {
	n.once.Do(n.call)
	return len(p), nil
}

func (l *Lab) exec(ctx context.Context, note io.Writer, pod *corev1.Pod, container string, command ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	both := io.Writer(&stderr)
	if note != nil {
		both = io.MultiWriter(&stderr, note)
	}
	if err := l.stream(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: both}, &stderr, pod, container, command...); err != nil {
		return nil, err
	}
	return stdout.Bytes(), nil
}

// stream runs a command with the given streams; said is what has been written to standard error.
func (l *Lab) stream(ctx context.Context, streams remotecommand.StreamOptions, said *bytes.Buffer, pod *corev1.Pod, container string, command ...string) error {
	request := l.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdin: streams.Stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	websocket, err := remotecommand.NewWebSocketExecutor(l.Config, http.MethodGet, request.URL().String())
	if err != nil {
		return err
	}
	spdy, err := remotecommand.NewSPDYExecutor(l.Config, http.MethodPost, request.URL())
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, httpstream.IsUpgradeFailure)
	if err != nil {
		return err
	}
	if err := executor.StreamWithContext(ctx, streams); err != nil {
		return fmt.Errorf("in pod %s/%s: %s: %w: %s", pod.Namespace, pod.Name, strings.Join(command, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}

// ExecJSON is Exec for a command that prints one JSON value.
func ExecJSON[T any](ctx context.Context, l *Lab, namespace, app, container string, command ...string) (T, error) {
	var out T
	pod, err := l.Pod(ctx, namespace, app)
	if err != nil {
		return out, err
	}
	return ExecInJSON[T](ctx, l, pod, container, command...)
}

// ExecInJSON is ExecJSON in a certain pod.
func ExecInJSON[T any](ctx context.Context, l *Lab, pod *corev1.Pod, container string, command ...string) (T, error) {
	var out T
	stdout, err := l.exec(ctx, nil, pod, container, command...)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(stdout, &out); err != nil {
		return out, fmt.Errorf("%s printed %q: %w", strings.Join(command, " "), stdout, err)
	}
	return out, nil
}

// Meshctl runs meshctl and returns its standard output.
func (l *Lab) Meshctl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, l.meshctl, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("meshctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// MeshctlTo runs meshctl with its output shown as it comes.
func (l *Lab) MeshctlTo(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, l.meshctl, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("meshctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// DeleteNamespaces deletes namespaces without waiting.
func (l *Lab) DeleteNamespaces(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := l.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// RemoveNamespaces deletes namespaces and waits until they are gone.
func (l *Lab) RemoveNamespaces(ctx context.Context, names ...string) error {
	if err := l.DeleteNamespaces(ctx, names...); err != nil {
		return err
	}
	return Poll(ctx, func(ctx context.Context) error {
		for _, name := range names {
			_, err := l.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			if err == nil {
				return fmt.Errorf("namespace %s is still there", name)
			}
			if !apierrors.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// LogJSON reads the one JSON value that a container that has ended printed last.
func LogJSON[T any](ctx context.Context, l *Lab, namespace, pod, container string) (T, error) {
	var out T
	content, err := l.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	if err != nil {
		return out, fmt.Errorf("log of %s in %s/%s: %w", container, namespace, pod, err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &out); err != nil {
		return out, fmt.Errorf("%s printed %q: %w", container, content, err)
	}
	return out, nil
}

// stop is an error that no waiting will mend.
type stop struct{ error }

// Stop marks an error that ends a Poll at once.
func Stop(err error) error { return stop{err} }

// List returns the objects of a kind in the whole cluster.
func (l *Lab) List(ctx context.Context, resource schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	list, err := l.dynamic.Resource(resource).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return nil, nil // a kind that went while we looked
	}
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}
