// Package secrets keeps a Secret with a key and certificate for every service account: made when the account appears,
// renewed before it expires, restored when it is deleted or damaged, and gone with the account.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// Workers is how many Secrets are written at once.
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
	written   *prometheus.CounterVec
	foreign   prometheus.Gauge
}

// New returns a controller; its metrics go to the registerer.
func New(client kubernetes.Interface, authority *ca.Keeper, c Config, cl clock.WithTicker, rec events.EventRecorder, reg prometheus.Registerer, log *slog.Logger) *Controller {
	ctl := &Controller{
		client: client, authority: authority, config: c, clock: cl, events: rec, log: log,
		written: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_secrets_written_total", Help: "Workload Secrets written, by reason: created, renewed, repaired or removed."}, []string{"reason"}),
		foreign: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_citadel_secrets_foreign", Help: "Service accounts whose Secret's name is taken by an object that is not Citadel's."}),
	}
	reg.MustRegister(ctl.written, ctl.foreign)
	return ctl
}

// key names a service account.
type key = cache.ObjectName

// session is the state of one Run.
type session struct {
	*Controller
	queue      workqueue.TypedRateLimitingInterface[key]
	accounts   corelisters.ServiceAccountLister
	namespaces corelisters.NamespaceLister
	secrets    corelisters.SecretLister

	mu    sync.Mutex
	due   map[key]time.Time // when the account's Secret is renewed
	taken map[key]bool      // accounts whose Secret's name belongs to another
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[key](100*time.Millisecond, time.Minute)
	s := &session{Controller: c, queue: workqueue.NewTypedRateLimitingQueue[key](limiter), due: map[key]time.Time{}, taken: map[key]bool{}}
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
	for informer, handle := range map[cache.SharedIndexInformer]func(any){
		accounts.Informer(): s.accountChanged, namespaces.Informer(): s.namespaceChanged, secrets.Informer(): s.secretChanged,
	} {
		reg, err := informer.AddEventHandler(each(handle))
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
	for range Workers {
		wg.Go(func() {
			for s.next(ctx) {
			}
		})
	}
	s.watchClock(ctx)
	return nil
}

// strip drops what the controller never reads, which is most of what a large cluster's objects weigh.
func strip(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

func each(f func(any)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: f, UpdateFunc: func(_, obj any) { f(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			f(obj)
		},
	}
}

func (s *session) accountChanged(obj any) {
	if sa, ok := obj.(*corev1.ServiceAccount); ok {
		s.queue.Add(key{Namespace: sa.Namespace, Name: sa.Name})
	}
}

func (s *session) secretChanged(obj any) {
	if sec, ok := obj.(*corev1.Secret); ok && len(sec.Name) > len(mesh.SecretPrefix) {
		s.queue.Add(key{Namespace: sec.Namespace, Name: sec.Name[len(mesh.SecretPrefix):]})
	}
}

func (s *session) namespaceChanged(obj any) {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return
	}
	for _, k := range s.accountsIn(ns.Name) {
		s.queue.Add(k)
	}
}

// watchClock queues what has become due. It compares wall-clock times each minute at least: a timer set for half a day
// would oversleep by as long as the machine was suspended.
func (s *session) watchClock(ctx context.Context) {
	ticker := s.clock.NewTicker(max(time.Second, min(time.Minute, s.config.TTL/20)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		now := s.clock.Now().Round(0)
		s.mu.Lock()
		for k, due := range s.due {
			if !now.Before(due) {
				s.queue.Add(k)
			}
		}
		for k := range s.taken {
			s.queue.Add(k) // nothing tells us when a foreign object goes
		}
		s.mu.Unlock()
	}
}

func (s *session) next(ctx context.Context) bool {
	k, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(k)
	if ctx.Err() != nil {
		return true // the lease is lost: whatever is left is another replica's
	}
	due, err := s.sync(ctx, k)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("workload Secret", "serviceAccount", k.String(), "error", err)
		}
		s.queue.AddRateLimited(k)
		return true
	}
	s.queue.Forget(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if due.IsZero() {
		delete(s.due, k)
	} else {
		s.due[k] = due
	}
	s.foreign.Set(float64(len(s.taken)))
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
