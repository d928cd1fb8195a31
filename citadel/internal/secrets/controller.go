// Package secrets keeps a Secret with a key and certificate for every service account: made when the account appears,
// renewed before it expires, restored when it is deleted or damaged, and gone with the account. All its state is in the
// API server: it may be killed at any point, and what runs next goes on from there.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Workers is how many Secrets are written at once. With the client's own limit it bounds what a root rotation, a first
// start and a start after a long absence ask of the API server.
const Workers = 8

// Controller reconciles Secrets while its Run lasts. It may be run again, after this replica has lost the lease and won
// it back.
type Controller struct {
	client    kubernetes.Interface
	authority *ca.Keeper
	config    Config
	clock     clock.WithTicker
	events    events.EventRecorder
	log       *slog.Logger
	retry     time.Duration // the first delay after a failure
	written   *prometheus.CounterVec
	lastWrite atomic.Pointer[time.Time]
	running   atomic.Pointer[session]
}

// New returns a controller; its metrics go to the registerer.
func New(client kubernetes.Interface, authority *ca.Keeper, c Config, cl clock.WithTicker, rec events.EventRecorder, reg prometheus.Registerer, log *slog.Logger) *Controller {
	ctl := &Controller{
		client: client, authority: authority, config: c, clock: cl, events: rec, log: log, retry: 100 * time.Millisecond,
		written: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_secrets_written_total", Help: "Workload Secrets written or removed, by reason."}, []string{"reason"}),
	}
	reg.MustRegister(ctl.written, collector{ctl})
	return ctl
}

// key names a service account.
type key = cache.ObjectName

// session is the state of one Run.
type session struct {
	*Controller
	order      *order
	queue      workqueue.TypedRateLimitingInterface[key]
	accounts   corelisters.ServiceAccountLister
	namespaces corelisters.NamespaceLister
	secrets    corelisters.SecretLister

	mu      sync.Mutex
	view    view
	known   map[key]facts          // of Secrets that were found sound
	past    map[key]*corev1.Secret // what the cache had of Secrets written since
	taken   map[key]bool           // accounts whose Secret's name belongs to another
	repairs map[key]*rate.Limiter  // of Secrets that had to be repaired
	failed  map[key]string         // why a Secret could not be written
}

func (c *Controller) newSession() *session {
	s := &session{Controller: c, order: newOrder(), view: view{State: c.authority.Current(), since: c.now()},
		known: map[key]facts{}, past: map[key]*corev1.Secret{}, taken: map[key]bool{}, repairs: map[key]*rate.Limiter{}, failed: map[key]string{}}
	queue := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[key]{Queue: s.order})
	s.queue = workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[key](c.retry, time.Minute),
		workqueue.TypedRateLimitingQueueConfig[key]{DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[key]{Queue: queue})})
	return s
}

// now is the wall clock's time: Go's own measure stands still while the machine is suspended.
func (c *Controller) now() time.Time { return c.clock.Now().Round(0) }

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	s := c.newSession()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.queue.ShutDown()
	defer cancel()

	factory := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(strip))
	ours := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(strip),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("type", mesh.SecretType).String()
		}))
	accounts, namespaces, secrets := factory.Core().V1().ServiceAccounts(), factory.Core().V1().Namespaces(), ours.Core().V1().Secrets()
	s.accounts, s.namespaces, s.secrets = accounts.Lister(), namespaces.Lister(), secrets.Lister()
	var synced []cache.InformerSynced
	for informer, handle := range map[cache.SharedIndexInformer]func(was, is any){
		accounts.Informer(): s.accountChanged, namespaces.Informer(): s.namespaceChanged, secrets.Informer(): s.secretChanged,
	} {
		reg, err := informer.AddEventHandler(changes(handle))
		if err != nil {
			return fmt.Errorf("watching for the Secret controller: %w", err)
		}
		synced = append(synced, reg.HasSynced)
	}
	factory.StartWithContext(ctx)
	ours.StartWithContext(ctx)
	defer factory.Shutdown()
	defer ours.Shutdown()
	defer cancel() // before Shutdown, which waits for the informers
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	s.askAll()
	c.running.Store(s)
	defer c.running.Store(nil)
	for range Workers {
		wg.Go(func() {
			for s.next(ctx) {
			}
		})
	}
	s.watch(ctx)
	return nil
}

// strip drops what the controller never reads, which is most of what a large cluster's objects weigh.
func strip(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// changes calls f with what was and what is, nil where there is nothing, but not for what was there at the start, nor
// for what a list repeats.
func changes(f func(was, is any)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, initial bool) {
			if !initial {
				f(nil, obj)
			}
		},
		UpdateFunc: func(was, is any) {
			a, _ := was.(metav1.Object)
			b, _ := is.(metav1.Object)
			if a == nil || b == nil || a.GetResourceVersion() == "" || a.GetResourceVersion() != b.GetResourceVersion() {
				f(was, is)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			f(obj, nil)
		},
	}
}

func (s *session) accountChanged(was, is any) {
	for _, obj := range []any{was, is} {
		if sa, ok := obj.(*corev1.ServiceAccount); ok {
			s.ask(key{Namespace: sa.Namespace, Name: sa.Name}, urgent)
			return
		}
	}
}

func (s *session) secretChanged(was, is any) {
	for _, obj := range []any{was, is} {
		if secret, ok := obj.(*corev1.Secret); ok {
			if account := s.accountOf(secret); account != "" {
				k := key{Namespace: secret.Namespace, Name: account}
				s.mu.Lock()
				delete(s.past, k)
				s.mu.Unlock()
				s.ask(k, urgent)
			}
			return
		}
	}
}

// namespaceChanged: a new namespace has few accounts, which do not wait; one that begins to take part may have many.
func (s *session) namespaceChanged(was, is any) {
	old, _ := was.(*corev1.Namespace)
	ns, _ := is.(*corev1.Namespace)
	name, at := "", missing
	switch {
	case old == nil && ns != nil:
		name, at = ns.Name, urgent
	case old != nil && ns == nil:
		name = old.Name
	case old != nil && s.takesPart(old) != s.takesPart(ns):
		name = ns.Name
	default:
		return
	}
	for _, k := range s.accountsIn(name) {
		s.ask(k, at)
	}
}

// ask queues an account.
func (s *session) ask(k key, r rank) {
	s.giveTurn(k, r)
	s.queue.Add(k)
}

func (s *session) giveTurn(k key, r rank) {
	var end time.Time
	if r == routine {
		s.mu.Lock()
		end = s.known[k].notAfter
		s.mu.Unlock()
	}
	s.order.ask(k, r, end)
}

// askAll queues all that there is when the controller starts: what lacks a Secret, and what may have to be looked at or
// removed.
func (s *session) askAll() {
	for _, k := range s.accountsIn(metav1.NamespaceAll) {
		if _, err := s.secrets.Secrets(k.Namespace).Get(mesh.SecretName(k.Name)); err != nil {
			s.ask(k, missing)
		}
	}
	for _, k := range s.secretsOf() {
		s.ask(k, look)
	}
}

// watch queues what has become due, and everything when the CA's state has changed. It compares wall-clock times each
// minute at least: a timer set for half a day would oversleep by as long as the machine was suspended.
func (s *session) watch(ctx context.Context) {
	ticker := s.clock.NewTicker(max(time.Second, min(time.Minute, s.config.TTL/20)))
	defer ticker.Stop()
	for {
		changed := s.authority.Changed()
		if s.see(s.authority.Current()) {
			for _, k := range s.accountsIn(metav1.NamespaceAll) {
				s.ask(k, routine)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-ticker.C():
			s.askDue()
		}
	}
}

// see takes over a state and reports whether it is another than before.
func (s *session) see(state *ca.State) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == s.view.State {
		return false
	}
	if !state.Signer.Certificate().Equal(s.view.Signer.Certificate()) {
		s.view.since = s.now()
	}
	s.view.State = state
	return true
}

// askDue queues renewals that are due, what was revoked, and accounts of which nothing is known: one that was lost on
// whatever way waits for a minute, not for a restart.
func (s *session) askDue() {
	now := s.now()
	var due, unknown, revoked []key
	accounts := s.accountsIn(metav1.NamespaceAll)
	s.mu.Lock()
	for _, k := range accounts {
		if f, ok := s.known[k]; !ok {
			unknown = append(unknown, k) // with it those whose name another object has: nothing tells us when that goes
		} else if s.config.denies(k, f.serial) {
			revoked = append(revoked, k)
		} else if !now.Before(f.due) {
			due = append(due, k)
		}
	}
	s.mu.Unlock()
	for _, k := range revoked {
		s.ask(k, urgent)
	}
	for _, k := range unknown {
		s.ask(k, missing)
	}
	for _, k := range due {
		s.ask(k, routine)
	}
}

func (s *session) next(ctx context.Context) bool {
	k, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(k)
	defer s.order.done(k)
	if ctx.Err() != nil {
		return true // the lease is lost: whatever is left is another replica's
	}
	at := s.order.rankOf(k)
	renewal, err := s.sync(ctx, k)
	s.noteFailure(k, err)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("workload Secret", "serviceAccount", k.String(), "error", err)
		}
		s.giveTurn(k, at)
		s.queue.AddRateLimited(k)
		return true
	}
	s.queue.Forget(k)
	if !renewal.IsZero() && !s.now().Before(renewal) && at != routine {
		s.ask(k, routine)
	}
	return true
}

// errForeign says that the Secret's name is taken.
var errForeign = errors.New("a Secret of this name exists that is not Citadel's")

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
