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
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/kubeobject"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const (
	writeTimeout = 10 * time.Second
	cleanEvery   = 10 * time.Minute
)

// Store follows the list and writes it. It is safe for concurrent use.
type Store struct {
	client kubernetes.Interface
	clock  clock.PassiveClock
	log    *slog.Logger

	mu     sync.RWMutex
	list   revocation.List
	read   bool          // a good list has been read
	damage error         // why the list that is stored now is not the one that is followed
	gone   chan struct{} // capacity one: the ConfigMap was deleted while something is revoked
}

// New returns the store; its metrics go to the registerer. It follows nothing until Run.
func New(client kubernetes.Interface, c clock.PassiveClock, reg prometheus.Registerer, log *slog.Logger) *Store {
	s := &Store{client: client, clock: c, log: log, gone: make(chan struct{}, 1)}
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
	return s
}

// see follows the ConfigMap. That there is none is a good list, too, at the start. Later it is put back if anything is
// revoked: a restored etcd must not give an identity back, and who deletes it must say for whom (Undo).
func (s *Store) see(stored *corev1.ConfigMap) {
	switch {
	case stored != nil:
		s.take(stored.Data)
	case len(s.List()) == 0:
		s.take(nil)
	default:
		s.log.Error("the list of revocations was deleted; it is put back", "configMap", mesh.Namespace+"/"+mesh.RevocationsConfig)
		select {
		case s.gone <- struct{}{}:
		default:
		}
	}
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

// Run follows the list, removes what has expired from it, and puts it back when it was deleted, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { kubeobject.WatchConfigMap(ctx, s.client, mesh.Namespace, mesh.RevocationsConfig, s.see) })
	for {
		if err := s.Clean(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("removing expired revocations; they are without effect all the same", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.gone:
			if err := s.putBack(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("the deleted list of revocations is followed here, and not stored", "error", err)
			}
		case <-time.After(wait.Jitter(cleanEvery, 0.5)):
		}
	}
}

// putBack stores the list again, unless there is one.
func (s *Store) putBack(ctx context.Context) error {
	return s.change(ctx, func(list revocation.List) (revocation.List, error) { return list, nil })
}

// Ready returns an error until a good list has been read; before that nothing may be issued. No ConfigMap is a good list.
func (s *Store) Ready() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.read:
		return nil
	case s.damage != nil:
		return fmt.Errorf("ConfigMap %s/%s must be repaired: %w", mesh.Namespace, mesh.RevocationsConfig, s.damage)
	default:
		return errors.New("the list of revocations has not been read yet")
	}
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
	configs := s.client.CoreV1().ConfigMaps(mesh.Namespace)
	stored, err := configs.Get(ctx, mesh.RevocationsConfig, metav1.GetOptions{})
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
	if missing {
		list = s.List()
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
		_, err = configs.Create(ctx, changed, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	} else {
		_, err = configs.Update(ctx, changed, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	}
	if err == nil {
		s.take(changed.Data) // this replica need not wait for the watch
	}
	return err
}
