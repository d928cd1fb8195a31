// Package feed carries the cluster's objects from the API server into Pilot's registry: every kind that the registry has, in the way
// in which the kind describes itself.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Feed carries the cluster's objects into a registry. Events wait in a map, one for each object, so what waits is never
// more than what exists; whoever applies them takes all that have come, at once.
type Feed struct {
	reg     *registry.Registry
	options authz.Options
	guard   *guard
	metrics *Metrics
	log     *slog.Logger

	synced  atomic.Bool
	alarmed int // removals held when last looked; of the goroutine that applies
	onHeld  func(count int)
	mu      sync.Mutex
	events  map[eventKey]registry.Event
	revoked revocations
	wake    chan struct{} // capacity one

	sources []source
}

type eventKey struct {
	kind registry.Kind
	id   string
}

// source is where the objects of a kind come from.
type source struct {
	kind     registry.Kind
	factory  factory
	informer cache.SharedIndexInformer
	handler  cache.ResourceEventHandlerRegistration
}

// factory runs informers.
type factory interface {
	Start(stop <-chan struct{})
	Shutdown()
}

// New returns a feed that is not started.
func New(reg *registry.Registry, kube kubernetes.Interface, dyn dynamic.Interface, options authz.Options, metrics *Metrics, log *slog.Logger) (*Feed, error) {
	f := &Feed{
		reg: reg, options: options, guard: newGuard(), metrics: metrics, log: log, events: map[eventKey]registry.Event{},
		wake: make(chan struct{}, 1), onHeld: func(int) {},
	}
	for _, kind := range registry.Kinds() {
		s := source{kind: kind}
		s.factory, s.informer = informerOf(kind.Resource(), kube, dyn)
		err := errors.Join(s.informer.SetTransform(trim(kind)), s.informer.SetWatchErrorHandlerWithContext(f.watchError(kind)))
		if err == nil {
			s.handler, err = s.informer.AddEventHandler(f.handler(kind))
		}
		if err != nil {
			return nil, fmt.Errorf("informer of %s: %w", kind, err)
		}
		f.sources = append(f.sources, s)
	}
	return f, nil
}

// informerOf watches a resource. Objects that client-go has a Go type for come in that, which costs less; others come unstructured.
func informerOf(r registry.Resource, kube kubernetes.Interface, dyn dynamic.Interface) (factory, cache.SharedIndexInformer) {
	only := func(o *meta.ListOptions) {
		if r.Only.Name != "" {
			o.FieldSelector = fields.OneTermEqualSelector(meta.ObjectNameField, r.Only.Name).String()
		}
	}
	typed := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithNamespace(r.Only.Namespace), informers.WithTweakListOptions(only))
	if known, err := typed.ForResource(r.GroupVersionResource); err == nil {
		return typed, known.Informer()
	}
	custom := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dyn, 0, r.Only.Namespace, only)
	return custom, custom.ForResource(r.GroupVersionResource).Informer()
}

// trim keeps the informers' caches small.
func trim(kind registry.Kind) cache.TransformFunc {
	return func(object any) (any, error) {
		kind.Trim(object)
		return object, nil
	}
}

func (f *Feed) watchError(kind registry.Kind) cache.WatchErrorHandlerWithContext {
	return func(_ context.Context, _ *cache.Reflector, err error) {
		f.metrics.watchErrors.WithLabelValues(kind.String()).Inc()
		f.log.Warn("watching the API server", "kind", kind.String(), "error", err)
	}
}

// handler makes events of what an informer shows.
func (f *Feed) handler(kind registry.Kind) cache.ResourceEventHandler {
	if kind == registry.Revocations {
		return f.revocationsHandler()
	}
	set := func(object any) {
		e, err := kind.Event(object, f.options)
		if err != nil {
			f.log.Error("an object of the API server is not what its kind says", "error", err)
			return
		}
		f.put(e)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, now any) { set(now) },
		DeleteFunc: func(object any) {
			if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
				// Seen missing in a list, not seen going: the list may be what is wrong.
				f.suspect(registry.Event{Kind: kind, ID: registry.IDOf(gone.Obj)})
				return
			}
			f.put(registry.Event{Kind: kind, ID: registry.IDOf(object)})
		},
	}
}

// Fetched takes an event of what comes from elsewhere than the API server.
func (f *Feed) Fetched(e registry.Event) { f.put(e) }

func (f *Feed) put(e registry.Event) {
	if e.ID == "" {
		return
	}
	f.mu.Lock()
	f.events[eventKey{e.Kind, e.ID}] = e
	f.guard.clear(eventKey{e.Kind, e.ID})
	f.mu.Unlock()
	f.signal()
}

func (f *Feed) suspect(e registry.Event) {
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

// Synced returns nil once every informer has listed what there is. Its error names the kinds that are missing: the API server may
// not know one, or not let it be listed, and that would not pass by itself.
func (f *Feed) Synced() error {
	if f.synced.Load() {
		return nil
	}
	var missing []string
	for _, s := range f.sources {
		if !s.informer.HasSynced() {
			missing = append(missing, s.kind.Resource().GroupResource().String())
		}
	}
	if len(missing) == 0 {
		return errors.New("what the API server has listed is not in the registry yet")
	}
	return fmt.Errorf("the API server has not listed %s yet", strings.Join(missing, ", "))
}

// Run follows the cluster until ctx ends, handing every batch of changes to apply.
func (f *Feed) Run(ctx context.Context, apply func(*registry.Snapshot, []registry.Change)) error {
	for _, s := range f.sources {
		defer s.factory.Shutdown()
		s.factory.Start(ctx.Done())
	}
	for _, s := range f.sources {
		if !cache.WaitForCacheSync(ctx.Done(), s.informer.HasSynced, s.handler.HasSynced) {
			return nil // ctx ended
		}
		f.log.Debug("listed", "kind", s.kind.String())
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

func (f *Feed) apply(apply func(*registry.Snapshot, []registry.Change)) error {
	f.mu.Lock()
	events := slices.Collect(maps.Values(f.events))
	clear(f.events)
	events = append(events, f.revoked.events(time.Now().Round(0))...)
	released, held := f.guard.judge(time.Now(), f.reg.Size)
	for _, k := range released {
		events = append(events, registry.Event{Kind: k.kind, ID: k.id})
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
		apply(f.reg.Snapshot(), changes)
	}
	return nil
}

// Stored returns a custom resource as the API server last showed it, nil if it has not; it must not be changed.
func (f *Feed) Stored(k registry.Kind, id string) *unstructured.Unstructured {
	for _, s := range f.sources {
		if s.kind != k {
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
