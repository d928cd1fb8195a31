// Package podwatch knows the pods and service accounts of the cluster, as far as Citadel needs them. It answers from what
// it saw last while the API server is away.
package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Watch follows the pods and service accounts of all namespaces. It is safe for concurrent use.
type Watch struct {
	factory  informers.SharedInformerFactory
	pods     cache.SharedIndexInformer
	accounts cache.SharedIndexInformer

	mu      sync.Mutex
	changed chan struct{}
}

// entry is what the cache keeps of a pod: its key, and what is known of it.
type entry struct {
	metav1.ObjectMeta
	pod Pod
}

const byUID = "uid"

// New returns a watch on the client. It is empty until Run has synced.
func New(client kubernetes.Interface, log *slog.Logger) (*Watch, error) {
	factory := informers.NewSharedInformerFactory(client, 0)
	w := &Watch{
		factory: factory, pods: factory.Core().V1().Pods().Informer(), accounts: factory.Core().V1().ServiceAccounts().Informer(),
		changed: make(chan struct{}),
	}
	_, err := w.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { w.tell() },
		UpdateFunc: func(old, now any) {
			if old.(*entry).pod != now.(*entry).pod {
				w.tell()
			}
		},
		DeleteFunc: func(any) { w.tell() },
	})
	failed := func(what string) cache.WatchErrorHandlerWithContext {
		return func(_ context.Context, _ *cache.Reflector, err error) {
			log.Warn("watch interrupted; what was seen last is believed meanwhile", "of", what, "error", err)
		}
	}
	err = errors.Join(err,
		w.pods.SetTransform(keepPod), w.accounts.SetTransform(keepAccount),
		w.pods.AddIndexers(cache.Indexers{byUID: func(o any) ([]string, error) { return []string{o.(*entry).pod.UID}, nil }}),
		w.pods.SetWatchErrorHandlerWithContext(failed("pods")), w.accounts.SetWatchErrorHandlerWithContext(failed("service accounts")))
	if err != nil {
		return nil, fmt.Errorf("watching pods and service accounts: %w", err)
	}
	return w, nil
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	w.factory.StartWithContext(ctx)
	<-ctx.Done()
	w.factory.Shutdown()
	return nil
}

// Synced reports whether everything has been listed once.
func (w *Watch) Synced() bool { return w.pods.HasSynced() && w.accounts.HasSynced() }

// WaitSynced returns when everything has been listed once, or with an error when ctx ends before.
func (w *Watch) WaitSynced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), w.Synced) {
		return fmt.Errorf("pods and service accounts are not listed yet: %w", context.Cause(ctx))
	}
	return nil
}

// Get returns the pod of a name.
func (w *Watch) Get(namespace, name string) (Pod, bool) {
	o, ok, err := w.pods.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return Pod{}, false
	}
	return o.(*entry).pod, true
}

// ByUID returns the pod of a UID.
func (w *Watch) ByUID(uid string) (Pod, bool) {
	found, err := w.pods.GetIndexer().ByIndex(byUID, uid)
	if err != nil || len(found) != 1 {
		return Pod{}, false
	}
	return found[0].(*entry).pod, true
}

// Account returns the UID of a service account.
func (w *Watch) Account(namespace, name string) (uid string, ok bool) {
	o, ok, err := w.accounts.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return "", false
	}
	return string(o.(*corev1.ServiceAccount).UID), true
}

// All returns every pod, in no order.
func (w *Watch) All() []Pod {
	all := w.pods.GetStore().List()
	out := make([]Pod, len(all))
	for i, o := range all {
		out[i] = o.(*entry).pod
	}
	return out
}

// Changed returns a channel that is closed when a pod changes next. Take it before looking.
func (w *Watch) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *Watch) tell() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}
