package secrets

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// writeTimeout bounds one write to the API server.
const writeTimeout = 15 * time.Second

// sync makes the Secret of one service account what it should be and returns when it is due for renewal; the zero time
// if there should be none.
func (s *session) sync(ctx context.Context, k key) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	sa, err := s.accounts.ServiceAccounts(k.Namespace).Get(k.Name)
	if err = ignoreNotFound(err); err != nil {
		return time.Time{}, fmt.Errorf("service account %s: %w", k, err)
	}
	existing, err := s.secrets.Secrets(k.Namespace).Get(mesh.SecretPrefix + k.Name)
	if err = ignoreNotFound(err); err != nil {
		return time.Time{}, fmt.Errorf("Secret of %s: %w", k, err)
	}
	if existing != nil && existing.Type != mesh.SecretType {
		existing = nil // never ours to touch, whatever the cache was asked for
	}
	wanted, err := s.wanted(k.Namespace)
	if err != nil {
		return time.Time{}, err
	}
	if sa == nil || sa.DeletionTimestamp != nil || !wanted {
		s.note(k, false)
		if sa != nil && wanted {
			return time.Time{}, nil // it is going; the garbage collector takes its Secret along
		}
		if sa == nil && existing != nil && wanted {
			// A cache that shrank (a restored etcd, a partial answer) must not take keys away from accounts that exist.
			if _, err := s.client.CoreV1().ServiceAccounts(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return time.Time{}, fmt.Errorf("service account %s is missing from the cache, and not known to be gone (%v)", k, err)
			}
		}
		return time.Time{}, s.remove(ctx, existing)
	}
	if existing == nil {
		return s.create(ctx, k, sa)
	}
	due, wrong := inspect(existing, sa, s.authority.Current(), s.config, s.clock.Now())
	if wrong == nil {
		return due, nil
	}
	return s.rewrite(ctx, sa, existing, wrong)
}

// wanted says whether accounts of the namespace have Secrets: not when it opted out, and not while it is going.
func (s *session) wanted(namespace string) (bool, error) {
	ns, err := s.namespaces.Get(namespace)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return ns.Labels[mesh.SecretsLabel] != "disabled" && ns.DeletionTimestamp == nil, nil
}

func (s *session) create(ctx context.Context, k key, sa *corev1.ServiceAccount) (time.Time, error) {
	fresh, err := build(sa, s.authority.Current(), s.config)
	if err != nil {
		return time.Time{}, err
	}
	made, err := s.client.CoreV1().Secrets(sa.Namespace).Create(ctx, fresh, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	if apierrors.IsAlreadyExists(err) {
		return time.Time{}, s.nameTaken(ctx, k, sa)
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("creating Secret %s/%s: %w", fresh.Namespace, fresh.Name, err)
	}
	s.note(k, false)
	return s.wrote(made, sa, "created", nil)
}

// nameTaken tells an informer that is behind from a name that another object has.
func (s *session) nameTaken(ctx context.Context, k key, sa *corev1.ServiceAccount) error {
	other, err := s.client.CoreV1().Secrets(k.Namespace).Get(ctx, mesh.SecretPrefix+k.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading Secret %s/%s%s: %w", k.Namespace, mesh.SecretPrefix, k.Name, err)
	}
	if other.Type == mesh.SecretType {
		return errors.New("the Secret has just been made; looking again")
	}
	if s.note(k, true) {
		s.events.Eventf(sa, other, corev1.EventTypeWarning, "SecretNameTaken", "IssueIdentity",
			"Secret %s of type %s is not Citadel's and is left alone; this service account has no workload Secret", other.Name, other.Type)
		s.log.Warn("workload Secret", "serviceAccount", k.String(), "error", errForeign)
	}
	return nil
}

func (s *session) rewrite(ctx context.Context, sa *corev1.ServiceAccount, existing *corev1.Secret, why error) (time.Time, error) {
	fresh, err := build(sa, s.authority.Current(), s.config)
	if err != nil {
		return time.Time{}, err
	}
	updated, err := s.client.CoreV1().Secrets(sa.Namespace).Update(ctx, merge(existing, fresh), metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	if apierrors.IsInvalid(err) { // somebody made it immutable; then it must go and come again
		return time.Time{}, errors.Join(s.remove(ctx, existing), fmt.Errorf("replacing Secret %s/%s: %w", existing.Namespace, existing.Name, err))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("writing Secret %s/%s: %w", existing.Namespace, existing.Name, err)
	}
	reason := "repaired"
	if errors.Is(why, errDue) {
		reason = "renewed"
	}
	return s.wrote(updated, sa, reason, why)
}

func (s *session) wrote(secret *corev1.Secret, sa *corev1.ServiceAccount, reason string, why error) (time.Time, error) {
	s.written.WithLabelValues(reason).Inc()
	due, err := inspect(secret, sa, s.authority.Current(), s.config, s.clock.Now())
	if err != nil {
		return time.Time{}, fmt.Errorf("Secret %s/%s after it was written: %w", secret.Namespace, secret.Name, err)
	}
	s.log.Info("workload Secret written", "secret", secret.Namespace+"/"+secret.Name, "reason", reason, "why", why, "renewAt", due)
	return due, nil
}

// remove deletes the Secret only as it was seen.
func (s *session) remove(ctx context.Context, secret *corev1.Secret) error {
	if secret == nil {
		return nil
	}
	err := s.client.CoreV1().Secrets(secret.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	s.written.WithLabelValues("removed").Inc()
	s.log.Info("workload Secret removed", "secret", secret.Namespace+"/"+secret.Name)
	return nil
}

// note records whether the account's Secret has a foreign object's name, and reports whether that is news.
func (s *session) note(k key, taken bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.taken[k]; was == taken {
		return false
	}
	if taken {
		s.taken[k] = true
	} else {
		delete(s.taken, k)
	}
	return true
}

func (s *session) accountsIn(namespace string) []key {
	accounts, err := s.accounts.ServiceAccounts(namespace).List(labels.Everything())
	if err != nil {
		return nil // a lister reads memory; it has no errors
	}
	out := make([]key, 0, len(accounts))
	for _, sa := range accounts {
		out = append(out, key{Namespace: sa.Namespace, Name: sa.Name})
	}
	return out
}
