// Package revoke keeps the list of revocations, which is in ConfigMap mesh.RevocationsConfig so that Pilot and people can
// read it, and says who is denied.
package revoke

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const (
	writeTimeout = 10 * time.Second
	cleanEvery   = 10 * time.Minute
)

// Store follows the list and writes it. It is safe for concurrent use.
type Store struct {
	configs typedcorev1.ConfigMapInterface
	factory informers.SharedInformerFactory
	clock   clock.PassiveClock
	log     *slog.Logger
	synced  cache.InformerSynced

	mu     sync.RWMutex
	list   revocation.List
	read   bool  // a good list has been read
	damage error // why the list that is stored now is not the one that is followed
}

// New returns the store; its metrics go to the registerer. It follows nothing until Run.
func New(client kubernetes.Interface, c clock.PassiveClock, reg prometheus.Registerer, log *slog.Logger) (*Store, error) {
	s := &Store{configs: client.CoreV1().ConfigMaps(mesh.Namespace), clock: c, log: log}
	s.factory = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(mesh.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", mesh.RevocationsConfig).String()
		}))
	handler, err := s.factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(o any) bool {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
			return err == nil && key == mesh.Namespace+"/"+mesh.RevocationsConfig
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { s.take(o.(*corev1.ConfigMap).Data) },
			UpdateFunc: func(_, o any) { s.take(o.(*corev1.ConfigMap).Data) },
			DeleteFunc: func(any) {
				s.log.Warn("the list of revocations was deleted; nothing is revoked", "configMap", mesh.RevocationsConfig)
				s.take(nil)
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watching ConfigMap %s: %w", mesh.RevocationsConfig, err)
	}
	s.synced = handler.HasSynced
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_revocations", Help: "Revocations in force."},
			func() float64 { return float64(len(s.List())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_revocations_damaged", Help: "1 while the stored list cannot be read and the last good one is followed."},
			func() float64 {
				s.mu.RLock()
				defer s.mu.RUnlock()
				if s.damage != nil {
					return 1
				}
				return 0
			}))
	return s, nil
}

// take follows the data, unless it is damaged.
func (s *Store) take(data map[string]string) {
	list, err := revocation.Parse(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damage = err; err != nil {
		s.log.Error("the list of revocations is damaged; the last good one is followed until it is repaired",
			"configMap", mesh.Namespace+"/"+mesh.RevocationsConfig, "following", len(s.list), "error", err)
		return
	}
	s.list, s.read = list, true
}

// Run follows the list, and removes what has expired from it, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	s.factory.StartWithContext(ctx)
	defer s.factory.Shutdown()
	wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		if err := s.Clean(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("removing expired revocations; they are without effect all the same", "error", err)
		}
	}, cleanEvery, 0.5, true)
	return nil
}

// Ready returns an error until a good list has been read; before that nothing may be issued. No ConfigMap is a good list.
func (s *Store) Ready() error {
	synced := s.synced()
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.damage != nil && !s.read:
		return fmt.Errorf("ConfigMap %s/%s must be repaired: %w", mesh.Namespace, mesh.RevocationsConfig, s.damage)
	case !synced:
		return errors.New("the list of revocations has not been read yet")
	}
	return nil
}

// List returns the revocations in force.
func (s *Store) List() revocation.List {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list.Active(s.clock.Now())
}

// Denies returns the revocation by which the identity gets no certificate or token; see revocation.List.
func (s *Store) Denies(identity, serial, podUID string) (revocation.Revocation, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list.Denies(identity, serial, podUID, s.clock.Now())
}

// Add puts a revocation on the list. The name must be new.
func (s *Store) Add(ctx context.Context, r revocation.Revocation) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("revocation: %w", err)
	}
	return s.change(ctx, func(list revocation.List) (revocation.List, error) {
		list = list.Active(s.clock.Now())
		if named(list, r.Name) >= 0 {
			return nil, fmt.Errorf("there is a revocation %s already", r.Name)
		}
		if len(list) >= revocation.MaxEntries {
			return nil, fmt.Errorf("there are %d revocations, more are not possible", len(list))
		}
		return append(list, r), nil
	})
}

// Undo takes a revocation off the list.
func (s *Store) Undo(ctx context.Context, name string) error {
	return s.change(ctx, func(list revocation.List) (revocation.List, error) {
		i := named(list, name)
		if i < 0 {
			return nil, fmt.Errorf("there is no revocation %s", name)
		}
		return slices.Delete(slices.Clone(list), i, i+1), nil
	})
}

// Clean takes what has expired off the list.
func (s *Store) Clean(ctx context.Context) error {
	s.mu.RLock()
	nothing := s.damage != nil || len(s.list.Active(s.clock.Now())) == len(s.list)
	s.mu.RUnlock()
	if nothing {
		return nil
	}
	return s.change(ctx, func(list revocation.List) (revocation.List, error) { return list.Active(s.clock.Now()), nil })
}

func named(list revocation.List, name string) int {
	return slices.IndexFunc(list, func(r revocation.Revocation) bool { return r.Name == name })
}

// change stores what edit makes of the stored list, again if someone else was faster. A list that cannot be read is left
// for a person to repair.
func (s *Store) change(ctx context.Context, edit func(revocation.List) (revocation.List, error)) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	raced := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	err := retry.OnError(retry.DefaultBackoff, raced, func() error { return s.changeOnce(ctx, edit) })
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", mesh.Namespace, mesh.RevocationsConfig, err)
	}
	return nil
}

func (s *Store) changeOnce(ctx context.Context, edit func(revocation.List) (revocation.List, error)) error {
	stored, err := s.configs.Get(ctx, mesh.RevocationsConfig, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if missing {
		stored = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mesh.RevocationsConfig, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}}}
	} else if err != nil {
		return err
	}
	list, err := revocation.Parse(stored.Data)
	if err != nil {
		return err
	}
	if list, err = edit(list); err != nil {
		return err
	}
	data, err := list.Encode()
	if err != nil {
		return err
	}
	changed := stored.DeepCopy()
	changed.Data = maps.Clone(stored.Data)
	if changed.Data == nil {
		changed.Data = map[string]string{}
	}
	maps.Copy(changed.Data, data)
	if missing {
		_, err = s.configs.Create(ctx, changed, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	} else {
		_, err = s.configs.Update(ctx, changed, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	}
	if err == nil {
		s.take(changed.Data) // this replica need not wait for the watch
	}
	return err
}
