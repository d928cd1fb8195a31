package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Feed carries the cluster's objects into a registry. Events wait in a map, one for each object, so what waits is never
// more than what exists; whoever applies them takes all that have come, at once.
type Feed struct {
	reg     *Registry
	options authz.Options
	guard   *guard
	metrics *Metrics
	log     *slog.Logger

	synced  atomic.Bool
	alarmed int // removals held when last looked; of the goroutine that applies
	onHeld  func(count int)
	mu      sync.Mutex
	events  map[eventKey]Event
	revoked revocations
	wake    chan struct{} // capacity one

	sources   []source
	factories []factory
}

// factory runs informers.
type factory interface {
	Start(stop <-chan struct{})
	Shutdown()
}

type eventKey struct {
	kind Kind
	id   string
}

type source struct {
	name     string
	informer cache.SharedIndexInformer
	handler  cache.ResourceEventHandlerRegistration
}

// NewFeed returns a feed that is not started.
func NewFeed(reg *Registry, kube kubernetes.Interface, dyn dynamic.Interface, options authz.Options, metrics *Metrics, log *slog.Logger) (*Feed, error) {
	f := &Feed{reg: reg, options: options, guard: newGuard(), metrics: metrics, log: log, events: map[eventKey]Event{}, wake: make(chan struct{}, 1), onHeld: func(int) {}}
	typed := informers.NewSharedInformerFactory(kube, 0)
	custom := dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0)
	f.factories = []factory{typed, custom}
	security := func(resource string) cache.SharedIndexInformer {
		return custom.ForResource(schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: resource}).Informer()
	}
	return f, errors.Join(
		follow(f, Services, typed.Core().V1().Services().Informer(), FromService),
		follow(f, Slices, typed.Discovery().V1().EndpointSlices().Informer(), FromSlice),
		follow(f, Pods, typed.Core().V1().Pods().Informer(), FromPod),
		follow(f, Namespaces, typed.Core().V1().Namespaces().Informer(), FromNamespace),
		follow(f, Policies, security("authorizationpolicies"), func(u *unstructured.Unstructured) *Policy { return FromAuthorizationPolicy(u, options) }),
		follow(f, PeerAuths, security("peerauthentications"), func(u *unstructured.Unstructured) *PeerAuth { return FromPeerAuthentication(u, options) }),
		follow(f, JWTRules, security("requestauthentications"), FromRequestAuthentication),
		followRevocations(f, kube),
	)
}

// follow connects an informer to the feed. convert returns nil for an object that the mesh has nothing to do with.
func follow[O any, M any](f *Feed, kind Kind, informer cache.SharedIndexInformer, convert func(*O) *M) error {
	if err := informer.SetTransform(strip); err != nil {
		return fmt.Errorf("informer of %s: %w", kind, err)
	}
	if err := f.watchErrors(kind, informer); err != nil {
		return err
	}
	set := func(o any) {
		obj, ok := o.(*O)
		if !ok {
			return
		}
		e := Event{Kind: kind, ID: idOf(o)}
		if m := convert(obj); m != nil {
			e.Object = m
		}
		f.put(e)
	}
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				// Seen missing in a list, not seen going: the list may be what is wrong.
				f.suspect(Event{Kind: kind, ID: idOf(gone.Obj)})
				return
			}
			f.put(Event{Kind: kind, ID: idOf(o)})
		},
	})
	if err != nil {
		return fmt.Errorf("informer of %s: %w", kind, err)
	}
	f.sources = append(f.sources, source{string(kind), informer, handler})
	return nil
}

func (f *Feed) watchErrors(kind Kind, informer cache.SharedIndexInformer) error {
	if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		f.metrics.watchErrors.WithLabelValues(string(kind)).Inc()
		f.log.Warn("watching the API server", "kind", kind, "error", err)
	}); err != nil {
		return fmt.Errorf("informer of %s: %w", kind, err)
	}
	return nil
}

func idOf(o any) string {
	m, err := meta.Accessor(o)
	if err != nil {
		return ""
	}
	if m.GetNamespace() == "" {
		return m.GetName()
	}
	return m.GetNamespace() + "/" + m.GetName()
}

// strip drops from the informers' caches what nobody here reads; it is most of an object.
func strip(o any) (any, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return o, nil // a tombstone
	}
	m.SetManagedFields(nil)
	switch t := o.(type) {
	case *core.Pod:
		pod := &core.Pod{ObjectMeta: t.ObjectMeta}
		pod.OwnerReferences = nil
		pod.Spec = core.PodSpec{NodeName: t.Spec.NodeName, ServiceAccountName: t.Spec.ServiceAccountName, HostNetwork: t.Spec.HostNetwork}
		for _, c := range t.Spec.InitContainers {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, core.Container{Name: c.Name, Ports: c.Ports})
		}
		for _, c := range t.Spec.Containers {
			pod.Spec.Containers = append(pod.Spec.Containers, core.Container{Name: c.Name, Ports: c.Ports})
		}
		pod.Status = core.PodStatus{Phase: t.Status.Phase, PodIP: t.Status.PodIP}
		return pod, nil
	case *core.Service:
		t.Annotations = nil
	case *core.Namespace:
		t.Annotations = nil
	case *discovery.EndpointSlice:
		t.Annotations, t.OwnerReferences = nil, nil
	}
	return o, nil
}

func (f *Feed) put(e Event) {
	if e.ID == "" {
		return
	}
	f.mu.Lock()
	f.events[eventKey{e.Kind, e.ID}] = e
	f.guard.clear(eventKey{e.Kind, e.ID})
	f.mu.Unlock()
	f.signal()
}

func (f *Feed) suspect(e Event) {
	f.mu.Lock()
	delete(f.events, eventKey{e.Kind, e.ID})
	f.guard.suspect(eventKey{e.Kind, e.ID}, time.Now())
	f.mu.Unlock()
	f.signal()
}

func (f *Feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Synced returns nil once every informer has listed what there is.
func (f *Feed) Synced() error {
	if f.synced.Load() {
		return nil
	}
	return errors.New("the informers have not listed the cluster yet")
}

// Run follows the cluster until ctx ends, handing every batch of changes to apply.
func (f *Feed) Run(ctx context.Context, apply func(*Snapshot, []Change)) error {
	for _, informers := range f.factories {
		defer informers.Shutdown()
		informers.Start(ctx.Done())
	}
	for _, s := range f.sources {
		if !cache.WaitForCacheSync(ctx.Done(), s.informer.HasSynced, s.handler.HasSynced) {
			return nil // ctx ended
		}
		f.log.Debug("listed", "kind", s.name)
	}
	if err := f.apply(apply); err != nil {
		return err
	}
	f.synced.Store(true)
	f.log.Info("registry holds the cluster")
	for {
		settle := time.NewTimer(f.settle())
		select {
		case <-f.wake:
		case <-settle.C:
		case <-ctx.Done():
			settle.Stop()
			return nil
		}
		settle.Stop()
		if err := f.apply(apply); err != nil {
			return err
		}
	}
}

// recheck bounds the wait for the end of a revocation, which is wall-clock time: a timer stands still while the machine is
// suspended.
const recheck = time.Minute

// settle is how long nothing is to be done unless something happens.
func (f *Feed) settle() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	wait := f.guard.settleIn(now)
	if due := f.revoked.due(); !due.IsZero() {
		wait = min(wait, recheck, max(time.Millisecond, due.Sub(now.Round(0))))
	}
	return wait
}

func (f *Feed) apply(apply func(*Snapshot, []Change)) error {
	f.mu.Lock()
	events := slices.Collect(maps.Values(f.events))
	clear(f.events)
	events = append(events, f.revoked.events(time.Now().Round(0))...)
	released, held := f.guard.judge(time.Now(), f.reg.Size)
	for _, k := range released {
		events = append(events, Event{Kind: k.kind, ID: k.id})
	}
	f.mu.Unlock()
	f.metrics.held.Set(float64(held))
	if held > f.alarmed {
		f.log.Error("a list of the API server lacks most of what was there; the removals are held until confirmed (meshctl pilot held)", "held", held)
		f.onHeld(held)
	}
	f.alarmed = held
	if len(events) == 0 {
		return nil
	}
	changes, err := f.reg.Apply(events)
	if err != nil {
		return err
	}
	if len(changes) > 0 {
		f.metrics.count(f.reg, changes)
		f.metrics.changes.Add(float64(len(changes)))
		apply(f.reg.Snapshot(), changes)
	}
	return nil
}

// Stored returns a custom resource as the API server last showed it, nil if it has not; it must not be changed.
func (f *Feed) Stored(k Kind, id string) *unstructured.Unstructured {
	for _, s := range f.sources {
		if s.name != string(k) {
			continue
		}
		o, _, err := s.informer.GetStore().GetByKey(id)
		if u, ok := o.(*unstructured.Unstructured); ok && err == nil {
			return u
		}
	}
	return nil
}

// Held returns the removals that wait for confirmation, by kind.
func (f *Feed) Held() []Held {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guard.held()
}

// Confirm lets the held removals through: the world has indeed shrunk. It fails unless so many are held as have been seen.
func (f *Feed) Confirm(seen int) error {
	f.mu.Lock()
	err := f.guard.confirm(seen)
	f.mu.Unlock()
	f.signal()
	return err
}

// OnHeld has f called when removals are held, and when there are more of them. It is called before Run.
func (f *Feed) OnHeld(call func(count int)) { f.onHeld = call }
