// Package bundle publishes the trust bundle: in a ConfigMap of every namespace and, where the API server has them, a
// ClusterTrustBundle, for whoever verifies the mesh's certificates; as the caBundle of the mesh's webhooks, for the API
// server; and on an HTTPS endpoint for other trust domains (SPIFFE Trust Domain and Bundle, section 5).
package bundle

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	admissionlisters "k8s.io/client-go/listers/admissionregistration/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const writeTimeout = 15 * time.Second

// Controller publishes while its Run lasts; it may be run again.
type Controller struct {
	client    kubernetes.Interface
	trust     *ca.Keeper
	documents *Documents
	log       *slog.Logger
	written   *prometheus.CounterVec

	mu      sync.Mutex
	session *session  // while Run lasts and its caches are synced
	last    time.Time // when something was written last
}

// New returns a controller that publishes the trust bundle; its metrics go to the registerer.
func New(client kubernetes.Interface, trust *ca.Keeper, documents *Documents, reg prometheus.Registerer, log *slog.Logger) *Controller {
	c := &Controller{client: client, trust: trust, documents: documents, log: log,
		written: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_citadel_bundles_written_total", Help: "Writes of the trust bundle, by kind of object."}, []string{"kind"})}
	reg.MustRegister(c.written, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bulwark_citadel_bundles_behind", Help: "ConfigMaps and webhooks without the current trust bundle; 0 on a replica that does not reconcile."},
		func() float64 { return float64(c.Progress().Behind) }))
	return c
}

// task is one object to look at.
type task struct{ kind, name string }

const (
	inNamespace = "ConfigMap"
	validating  = "ValidatingWebhookConfiguration"
	mutating    = "MutatingWebhookConfiguration"
	clusterWide = "ClusterTrustBundle"
)

type session struct {
	*Controller
	hasClusterBundles bool
	queue             workqueue.TypedRateLimitingInterface[task]
	namespaces        corelisters.NamespaceLister
	configMaps        corelisters.ConfigMapLister
	validating        admissionlisters.ValidatingWebhookConfigurationLister
	mutating          admissionlisters.MutatingWebhookConfigurationLister
}

// Run publishes until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[task](100*time.Millisecond, time.Minute)
	s := &session{Controller: c, queue: workqueue.NewTypedRateLimitingQueue[task](limiter)}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.queue.ShutDown()
	defer cancel()

	all := informers.NewSharedInformerFactory(c.client, 0)
	bundles, hooks := named(c.client, mesh.TrustBundleConfig), named(c.client, mesh.WebhookConfiguration)
	namespaces, configMaps := all.Core().V1().Namespaces(), bundles.Core().V1().ConfigMaps()
	validatingHooks, mutatingHooks := hooks.Admissionregistration().V1().ValidatingWebhookConfigurations(), hooks.Admissionregistration().V1().MutatingWebhookConfigurations()
	s.namespaces, s.configMaps, s.validating, s.mutating = namespaces.Lister(), configMaps.Lister(), validatingHooks.Lister(), mutatingHooks.Lister()

	var synced []cache.InformerSynced
	for informer, taskOf := range map[cache.SharedIndexInformer]func(metav1.Object) task{
		namespaces.Informer():      func(o metav1.Object) task { return task{inNamespace, o.GetName()} },
		configMaps.Informer():      func(o metav1.Object) task { return task{inNamespace, o.GetNamespace()} },
		validatingHooks.Informer(): func(o metav1.Object) task { return task{validating, o.GetName()} },
		mutatingHooks.Informer():   func(o metav1.Object) task { return task{mutating, o.GetName()} },
	} {
		reg, err := informer.AddEventHandler(s.enqueue(taskOf))
		if err != nil {
			return fmt.Errorf("watching for the trust bundle: %w", err)
		}
		synced = append(synced, reg.HasSynced)
	}
	for _, f := range []informers.SharedInformerFactory{all, bundles, hooks} {
		f.StartWithContext(ctx)
		defer f.Shutdown()
	}
	defer cancel() // before the Shutdowns, which wait for the informers
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	s.hasClusterBundles = c.servesClusterBundles()
	c.setSession(s)
	defer c.setSession(nil)
	for range 4 {
		wg.Go(func() {
			for s.next(ctx) {
			}
		})
	}
	for {
		changed := c.trust.Changed()
		s.enqueueAll()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *Controller) setSession(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
}

func (s *session) enqueueAll() {
	if s.hasClusterBundles {
		s.queue.Add(task{clusterWide, mesh.ClusterTrustBundle})
	}
	for _, kind := range []string{validating, mutating} {
		s.queue.Add(task{kind, mesh.WebhookConfiguration})
	}
	for _, name := range s.names() {
		s.queue.Add(task{inNamespace, name})
	}
}

// names returns the namespaces that have a bundle.
func (s *session) names() []string {
	all, err := s.namespaces.List(labels.Everything())
	if err != nil {
		return nil // a lister reads memory; it has no errors
	}
	var out []string
	for _, ns := range all {
		if ns.DeletionTimestamp == nil {
			out = append(out, ns.Name)
		}
	}
	return out
}

// Progress says how far the current bundle has got.
type Progress struct {
	Settling bool      // the caches are not synced: Behind says nothing
	Behind   int       // objects without it
	Written  time.Time // the last write of one by this replica
}

// Progress returns how far the current bundle has got.
func (c *Controller) Progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := Progress{Settling: c.session == nil, Written: c.last}
	if c.session == nil {
		return p
	}
	want, err := c.data()
	if err != nil {
		p.Settling = true
		return p
	}
	for _, name := range c.session.names() {
		if cm, err := c.session.configMaps.ConfigMaps(name).Get(mesh.TrustBundleConfig); err != nil || !maps.Equal(cm.Data, want) {
			p.Behind++
		}
	}
	p.Behind += c.session.webhooksBehind()
	return p
}

// data is what a ConfigMap holds: the roots, and the whole bundle as SPIFFE writes it.
func (c *Controller) data() (map[string]string, error) {
	state := c.trust.Current()
	document, err := c.documents.Document(state)
	if err != nil {
		return nil, err
	}
	return map[string]string{mesh.RootCertKey: string(state.RootsPEM), mesh.BundleKey: string(document)}, nil
}

func (c *Controller) wrote(kind string) {
	c.written.WithLabelValues(kind).Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
}

func named(client kubernetes.Interface, name string) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	}))
}

func (s *session) enqueue(taskOf func(metav1.Object) task) cache.ResourceEventHandler {
	add := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if o, ok := obj.(metav1.Object); ok {
			s.queue.Add(taskOf(o))
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, obj any) { add(obj) }, DeleteFunc: add}
}

func (s *session) next(ctx context.Context) bool {
	t, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(t)
	if ctx.Err() != nil {
		return true
	}
	if err := s.sync(ctx, t); err != nil {
		if ctx.Err() == nil {
			s.log.Warn("publishing the trust bundle", "kind", t.kind, "name", t.name, "error", err)
		}
		s.queue.AddRateLimited(t)
		return true
	}
	s.queue.Forget(t)
	return true
}

func (s *session) sync(ctx context.Context, t task) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	switch t.kind {
	case clusterWide:
		return s.syncClusterBundle(ctx)
	case validating:
		return syncWebhooks(ctx, s, validating, s.validating, s.client.AdmissionregistrationV1().ValidatingWebhookConfigurations())
	case mutating:
		return syncWebhooks(ctx, s, mutating, s.mutating, s.client.AdmissionregistrationV1().MutatingWebhookConfigurations())
	}
	ns, err := s.namespaces.Get(t.name)
	if apierrors.IsNotFound(err) || (err == nil && ns.DeletionTimestamp != nil) {
		return nil
	}
	if err != nil {
		return err
	}
	existing, err := s.configMaps.ConfigMaps(t.name).Get(mesh.TrustBundleConfig)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	want, wrong := s.data()
	if wrong != nil || (err == nil && maps.Equal(existing.Data, want)) {
		return wrong
	}
	return s.Publish(ctx, t.name)
}

// Publish writes the bundle into one namespace. Citadel does it for its own before anything else, because the other
// components wait for it.
func (c *Controller) Publish(ctx context.Context, namespace string) error {
	data, err := c.data()
	if err != nil {
		return err
	}
	configMaps := c.client.CoreV1().ConfigMaps(namespace)
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.TrustBundleConfig, Namespace: namespace, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}},
		Data:       data,
	}
	_, err = configMaps.Create(ctx, want, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	if apierrors.IsAlreadyExists(err) {
		err = c.replace(ctx, want)
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", namespace, want.Name, err)
	}
	c.wrote(inNamespace)
	return nil
}

func (c *Controller) replace(ctx context.Context, want *corev1.ConfigMap) error {
	configMaps := c.client.CoreV1().ConfigMaps(want.Namespace)
	existing, err := configMaps.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if maps.Equal(existing.Data, want.Data) {
		return nil
	}
	if existing.Immutable != nil && *existing.Immutable {
		if err := configMaps.Delete(ctx, want.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &existing.UID}}); err != nil {
			return err
		}
		_, err = configMaps.Create(ctx, want, metav1.CreateOptions{FieldManager: mesh.FieldManager})
		return err
	}
	out := existing.DeepCopy()
	out.Data, out.BinaryData = want.Data, nil
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.Labels[mesh.PartOfLabel] = mesh.PartOfValue
	if _, err = configMaps.Update(ctx, out, metav1.UpdateOptions{FieldManager: mesh.FieldManager}); err != nil {
		return err
	}
	c.log.Debug("trust bundle written", "namespace", want.Namespace)
	return nil
}
