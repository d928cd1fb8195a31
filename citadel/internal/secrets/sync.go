package secrets

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// writeTimeout bounds one write to the API server.
const writeTimeout = 15 * time.Second

// How often one Secret is repaired. Something that spoils it whenever it is written must not keep Citadel and the API
// server busy; a person who tries things out must not wait.
const (
	repairBurst = 20
	repairEvery = 10 * time.Second
)

// sync makes the Secret of one service account what it should be and returns when it is to be written next; the zero
// time if there should be none. What is routine it leaves to the account's routine turn.
func (s *session) sync(ctx context.Context, k key) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	sa, err := s.accounts.ServiceAccounts(k.Namespace).Get(k.Name)
	if err = ignoreNotFound(err); err != nil {
		return time.Time{}, fmt.Errorf("service account %s: %w", k, err)
	}
	existing, err := s.secrets.Secrets(k.Namespace).Get(mesh.SecretName(k.Name))
	if err = ignoreNotFound(err); err != nil {
		return time.Time{}, fmt.Errorf("Secret of %s: %w", k, err)
	}
	if existing != nil && existing.Type != mesh.SecretType {
		existing = nil // never ours to touch, whatever the cache was asked for
	}
	wanted, err := s.wanted(k)
	if err != nil {
		return time.Time{}, err
	}
	if sa != nil && sa.DeletionTimestamp != nil && wanted {
		return time.Time{}, nil // the garbage collector takes its Secret along
	}
	if sa == nil || !wanted {
		if existing != nil {
			if err := s.knownToBeGone(ctx, k); err != nil {
				return time.Time{}, err
			}
		}
		s.drop(k)
		return time.Time{}, s.remove(ctx, existing)
	}
	if existing == nil {
		return s.create(ctx, k, sa)
	}
	return s.keep(ctx, k, sa, existing)
}

// knownToBeGone asks the API server about what the cache lacks, the namespace or the account. A cache that shrank (a restored
// etcd, a partial answer) must not take keys away from accounts that exist.
func (s *session) knownToBeGone(ctx context.Context, k key) error {
	if _, err := s.namespaces.Get(k.Namespace); apierrors.IsNotFound(err) {
		if _, err := s.client.CoreV1().Namespaces().Get(ctx, k.Namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the namespace of %s is missing from the cache, and not known to be gone (%v)", k, err)
		}
	}
	if _, err := s.accounts.ServiceAccounts(k.Namespace).Get(k.Name); apierrors.IsNotFound(err) {
		if _, err := s.client.CoreV1().ServiceAccounts(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("service account %s is missing from the cache, and not known to be gone (%v)", k, err)
		}
	}
	return nil
}

// keep leaves a Secret as it is, or writes it anew.
func (s *session) keep(ctx context.Context, k key, sa *corev1.ServiceAccount, existing *corev1.Secret) (time.Time, error) {
	if s.replaced(k) == existing {
		return time.Time{}, nil // the cache is behind; the account is asked for again when it is not
	}
	view := s.current()
	found, reason := inspect(existing, sa, view, s.config, s.now())
	if reason == "" || reason.routine() {
		s.learn(k, found)
		if reason == "" {
			return found.due, nil
		}
		if s.order.rankOf(k) != routine {
			return s.now(), nil
		}
	} else {
		s.forget(k)
		if !s.mayRepair(k) {
			return time.Time{}, fmt.Errorf("Secret is %s again and again; it is repaired once in %s", reason, repairEvery)
		}
	}
	next, err := s.replacement(existing, sa, view.State, reason)
	if err != nil {
		return time.Time{}, err
	}
	updated, err := s.client.CoreV1().Secrets(sa.Namespace).Update(ctx, next, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	if apierrors.IsInvalid(err) { // somebody made it immutable; then it must go and come again
		return time.Time{}, errors.Join(s.remove(ctx, existing), fmt.Errorf("replacing Secret %s/%s: %w", existing.Namespace, existing.Name, err))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("writing Secret %s/%s: %w", existing.Namespace, existing.Name, err)
	}
	s.replace(k, existing)
	return s.wrote(k, updated, sa, reason)
}

// replacement has a new key and certificate, unless only the bundle has changed.
func (s *session) replacement(existing *corev1.Secret, sa *corev1.ServiceAccount, state *ca.State, reason Reason) (*corev1.Secret, error) {
	if reason == BundleChanged {
		return withBundle(existing, state), nil
	}
	fresh, err := s.fresh(sa, state, reason)
	if err != nil {
		return nil, err
	}
	return merge(existing, fresh), nil
}

// fresh is a Secret with a new certificate, which is in the audit trail before it is anywhere else: one whose writing was
// cut short has been issued all the same.
func (s *session) fresh(sa *corev1.ServiceAccount, state *ca.State, reason Reason) (*corev1.Secret, error) {
	id, err := spiffe.New(s.config.TrustDomain, sa.Namespace, sa.Name)
	if err != nil {
		return nil, err
	}
	secret, serial, err := build(sa, id, state, s.config)
	if err != nil {
		return nil, err
	}
	if s.config.Audit != nil {
		s.config.Audit(string(reason), id, serial)
	}
	return secret, nil
}

// wanted says whether the account is to have a Secret, if it exists.
func (s *session) wanted(k key) (bool, error) {
	ns, err := s.namespaces.Get(k.Namespace)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("namespace %s: %w", k.Namespace, err)
	}
	return s.takesPart(ns) && !s.config.denies(k, ""), nil
}

// takesPart: not when it opted out, nor while it is going, nor, where namespaces opt in, before it did.
func (s *session) takesPart(ns *corev1.Namespace) bool {
	label := ns.Labels[mesh.SecretsLabel]
	return ns.DeletionTimestamp == nil && label != "disabled" && (!s.config.OptIn || label == "enabled")
}

func (s *session) create(ctx context.Context, k key, sa *corev1.ServiceAccount) (time.Time, error) {
	reason := Created
	if was := s.forget(k); was.account == string(sa.UID) {
		reason = Deleted
		if !s.mayRepair(k) {
			return time.Time{}, fmt.Errorf("Secret is deleted again and again; it is restored once in %s", repairEvery)
		}
	}
	fresh, err := s.fresh(sa, s.current().State, reason)
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
	return s.wrote(k, made, sa, reason)
}

// nameTaken tells an informer that is behind from a name that another object has.
func (s *session) nameTaken(ctx context.Context, k key, sa *corev1.ServiceAccount) error {
	other, err := s.client.CoreV1().Secrets(k.Namespace).Get(ctx, mesh.SecretName(k.Name), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading Secret %s/%s: %w", k.Namespace, mesh.SecretName(k.Name), err)
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

// wrote tells everybody that a Secret was written. Faults and deletions are Events of the account, too; the usual course
// of things is not, as a root rotation would fill the API server with Events.
func (s *session) wrote(k key, secret *corev1.Secret, sa *corev1.ServiceAccount, reason Reason) (time.Time, error) {
	now := s.now()
	s.written.WithLabelValues(string(reason)).Inc()
	s.lastWrite.Store(&now)
	if reason.repair() {
		s.repaired(k)
	}
	found, wrong := inspect(secret, sa, s.current(), s.config, now)
	if wrong != "" && !wrong.routine() {
		return time.Time{}, fmt.Errorf("Secret %s/%s after it was written: %s", secret.Namespace, secret.Name, wrong)
	}
	s.learn(k, found)
	s.log.Info("workload Secret written", "secret", secret.Namespace+"/"+secret.Name, "reason", reason, "serial", found.serial, "renewAt", found.due)
	if reason.repair() {
		s.events.Eventf(sa, secret, corev1.EventTypeWarning, "Secret"+string(reason), "IssueIdentity", "Secret %s was written anew, with a new key: %s", secret.Name, told[reason])
	}
	return found.due, nil
}

// told says to people what a fault was.
var told = map[Reason]string{
	Corrupt:       "no certificate and key could be read from it",
	KeyMismatch:   "its key was not that of its certificate",
	WrongIdentity: "its certificate was for another identity",
	Expired:       "its certificate had expired",
	NotYetValid:   "its certificate was not valid yet",
	Untrusted:     "its certificate did not verify with the mesh's trust bundle",
	Revoked:       "its certificate was revoked",
	Edited:        "its owner, label or entries had been changed",
	Deleted:       "it had been deleted",
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
	s.written.WithLabelValues(string(Removed)).Inc()
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

func (s *session) current() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// learn records what a sound Secret holds.
func (s *session) learn(k key, f facts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[k] = f
}

// forget drops what was known of a Secret, and returns it.
func (s *session) forget(k key) facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.known[k]
	delete(s.known, k)
	return was
}

// replace notes that what the cache has is of the past, until it has something else.
func (s *session) replace(k key, cached *corev1.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past[k] = cached
}

// replaced returns what was in the cache when the Secret was last written; nil if the cache has changed since.
func (s *session) replaced(k key) *corev1.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past[k]
}

// drop forgets an account that should have no Secret.
func (s *session) drop(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, k)
	delete(s.past, k)
	delete(s.taken, k)
	delete(s.repairs, k)
}

func (s *session) mayRepair(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.repairs[k]
	return limit == nil || limit.TokensAt(s.now()) >= 1
}

// repaired counts a repair that was done, not one that was tried.
func (s *session) repaired(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.repairs[k] == nil {
		s.repairs[k] = rate.NewLimiter(rate.Every(repairEvery), repairBurst)
	}
	s.repairs[k].AllowN(s.now(), 1)
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

// secretsOf returns the accounts, there or not, that the Secrets belong to.
func (s *session) secretsOf() []key {
	secrets, err := s.secrets.List(labels.Everything())
	if err != nil {
		return nil
	}
	out := make([]key, 0, len(secrets))
	for _, secret := range secrets {
		if account := s.accountOf(secret); account != "" {
			out = append(out, key{Namespace: secret.Namespace, Name: account})
		}
	}
	return out
}

// accountOf returns the account, there or not, that a Secret is for; empty if it can be nobody's. A name that is a hash is
// looked for among the accounts of the namespace, as owners may have been edited, and then among its owners, as the account may
// be gone.
func (s *session) accountOf(secret *corev1.Secret) string {
	if !mesh.IsSecretName(secret.Name) {
		return ""
	}
	if account := mesh.SecretAccount(secret.Name); account != "" {
		return account
	}
	var candidates []string
	for _, k := range s.accountsIn(secret.Namespace) {
		candidates = append(candidates, k.Name)
	}
	for _, owner := range secret.OwnerReferences {
		candidates = append(candidates, owner.Name)
	}
	return mesh.SecretAccount(secret.Name, candidates...)
}
