// Package kubeobject watches one Kubernetes object of a name.
package kubeobject

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// WatchSecret calls see with the Secret as it is, each time that it has changed, and with nil when it is not there: at the
// beginning, too, so whoever waits for the first call knows what there is. The calls come one after the other; one may come
// again with what was seen before. What see is given is its own to keep, and nothing else of the cluster is kept.
//
// It watches until ctx ends and tries again, ever less often, while the API server is away. What goes wrong is in klog.
func WatchSecret(ctx context.Context, client kubernetes.Interface, namespace, name string, see func(*corev1.Secret)) {
	watchOne(ctx, client, client.CoreV1().Secrets(namespace), name, see)
}

// WatchConfigMap does for a ConfigMap what WatchSecret does for a Secret.
func WatchConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, see func(*corev1.ConfigMap)) {
	watchOne(ctx, client, client.CoreV1().ConfigMaps(namespace), name, see)
}

// WatchDaemonSet does for a DaemonSet what WatchSecret does for a Secret.
func WatchDaemonSet(ctx context.Context, client kubernetes.Interface, namespace, name string, see func(*appsv1.DaemonSet)) {
	watchOne(ctx, client, client.AppsV1().DaemonSets(namespace), name, see)
}

// objects is a typed client of one resource.
type objects[List runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (List, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func watchOne[O any, List runtime.Object](ctx context.Context, client kubernetes.Interface, from objects[List], name string, see func(*O)) {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return from.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return from.Watch(ctx, options)
		},
	}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(source, client), new(O), &sight[O]{name: name, see: see},
		cache.ReflectorOptions{Name: name}).RunWithContext(ctx)
}

// sight is the reflector's store: it hands on what it is given and keeps nothing. The reflector calls it from one
// goroutine.
type sight[O any] struct {
	name   string
	see    func(*O)
	looked bool // see has been called
	there  bool // the last time with an object
}

// isIt is false for what a fake client sends, which knows no field selectors.
func (s *sight[O]) isIt(object any) bool {
	o, ok := object.(metav1.Object)
	return ok && o.GetName() == s.name
}

func (s *sight[O]) Add(object any) error {
	if o, ok := object.(*O); ok && s.isIt(object) {
		s.looked, s.there = true, true
		s.see(o)
	}
	return nil
}

func (s *sight[O]) Update(object any) error { return s.Add(object) }

func (s *sight[O]) Delete(object any) error {
	if s.isIt(object) {
		s.gone()
	}
	return nil
}

// Replace takes a list of all that there is.
func (s *sight[O]) Replace(all []any, _ string) error {
	for _, object := range all {
		if s.isIt(object) {
			return s.Add(object)
		}
	}
	s.gone()
	return nil
}

func (s *sight[O]) Resync() error { return nil }

func (s *sight[O]) gone() {
	if s.looked && !s.there {
		return
	}
	s.looked, s.there = true, false
	s.see(nil)
}
