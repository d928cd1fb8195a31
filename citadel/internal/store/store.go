package store

import (
	"bytes"
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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/kubeobject"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const (
	callTimeout = 10 * time.Second
	// rederive is how often the state is made anew from what is stored: which key signs JWT-SVIDs depends on the time.
	rederive = time.Minute
)

// Store follows the CA Secret and makes it this replica's State. It is safe for concurrent use.
type Store struct {
	client kubernetes.Interface
	config rotate.Config
	clock  clock.WithTicker
	log    *slog.Logger
	good   prometheus.Gauge

	first First
	amiss chan struct{} // capacity one: the Secret was deleted, or put back to what it was

	mu      sync.Mutex
	ca      rotate.CA
	keeper  *ca.Keeper
	changed chan struct{} // closed and replaced whenever the Secret was read or written
}

// First returns the CA that a mesh begins with.
type First func(context.Context) (rotate.Signer, error)

// New returns a store that holds nothing until it is opened; its metric goes to the registerer.
func New(client kubernetes.Interface, config rotate.Config, clk clock.WithTicker, first First, reg prometheus.Registerer, log *slog.Logger) *Store {
	s := &Store{client: client, config: config, clock: clk, log: log, amiss: make(chan struct{}, 1), changed: make(chan struct{}), first: first,
		good: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulwark_citadel_ca_secret_good", Help: "0 while Secret bulwark-ca is damaged and Citadel goes on with what it had read before."})}
	reg.MustRegister(s.good)
	return s
}

// Open loads the CA, making one if there is none; then that is stored, unless another replica was faster: then that
// one's is used by all. A Secret that is there is never overwritten, nor made where a trust bundle shows that there was
// one: it is Damaged, and a person must look, as another CA would cut every workload off from every other.
func (s *Store) Open(ctx context.Context) error {
	c, created, err := s.loadOrCreate(ctx)
	if err != nil {
		return err
	}
	state, err := c.State(s.config, s.clock)
	if err != nil {
		return Damaged{err}
	}
	s.ca, s.keeper = c, ca.NewKeeper(state)
	s.good.Set(1)
	cert := state.Signer.Certificate()
	s.log.Info("CA loaded", "created", created, "subject", cert.Subject.String(), "notAfter", cert.NotAfter, "roots", len(state.Roots), "bundle", state.Sequence)
	return nil
}

// Damaged says that the CA Secret is of no use, or gone from a mesh that has one.
type Damaged struct{ Err error }

func (d Damaged) Error() string {
	return fmt.Sprintf("Secret %[1]s/%[2]s is damaged or lost (restore it; or start the mesh anew, without any identity of today, by deleting it and ConfigMap %[1]s/%[3]s): %[4]v",
		mesh.Namespace, mesh.CASecret, mesh.TrustBundleConfig, d.Err)
}

// Unwrap returns what is wrong.
func (d Damaged) Unwrap() error { return d.Err }

// Keeper returns the holder of the state that the Secret stands for.
func (s *Store) Keeper() *ca.Keeper { return s.keeper }

// CA returns what is stored, as this replica has last seen it.
func (s *Store) CA() rotate.CA {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ca
}

// Changed returns a channel that is closed when what is stored may have changed. Take it before looking at CA.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) loadOrCreate(ctx context.Context) (rotate.CA, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// Asked in this order, as a bundle is published after the Secret was made.
	_, err := s.client.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return rotate.CA{}, false, fmt.Errorf("reading ConfigMap %s: %w", mesh.TrustBundleConfig, err)
	}
	published := err == nil
	got, err := s.client.CoreV1().Secrets(mesh.Namespace).Get(ctx, mesh.CASecret, metav1.GetOptions{})
	if err == nil {
		c, err := decode(got.Data)
		if err != nil {
			err = Damaged{err}
		}
		return c, false, err
	}
	if !apierrors.IsNotFound(err) {
		return rotate.CA{}, false, fmt.Errorf("reading Secret %s: %w", mesh.CASecret, err)
	}
	if published {
		return rotate.CA{}, false, Damaged{fmt.Errorf("it is not there, and ConfigMap %s says that the mesh has a CA", mesh.TrustBundleConfig)}
	}
	c, err := s.begin(ctx)
	if err != nil {
		return rotate.CA{}, false, err
	}
	err = s.create(ctx, c)
	if apierrors.IsAlreadyExists(err) {
		c, _, err := s.loadOrCreate(ctx)
		return c, false, err
	}
	return c, err == nil, err
}

func (s *Store) begin(ctx context.Context) (rotate.CA, error) {
	signer, err := s.first(ctx)
	if err != nil {
		return rotate.CA{}, err
	}
	tokens, _, err := rotate.RotateTokens(nil, s.clock.Now(), ca.NewTokenKey)
	return rotate.CA{Current: signer, Sequence: 1, Tokens: tokens}, err
}

func (s *Store) create(ctx context.Context, c rotate.CA) error {
	data, err := encode(c)
	if err != nil {
		return err
	}
	_, err = s.client.CoreV1().Secrets(mesh.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.CASecret, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}},
		Type:       corev1.SecretTypeOpaque, Data: data,
	}, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("storing Secret %s: %w", mesh.CASecret, err)
	}
	return err
}

// Update changes what is stored by a function of it, which is called again when somebody else was faster. The state
// follows at once on this replica, and on the others when they see the Secret. A change that returns an error stores
// nothing.
func (s *Store) Update(ctx context.Context, change func(rotate.CA) (rotate.CA, error)) error {
	secrets := s.client.CoreV1().Secrets(mesh.Namespace)
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		got, err := secrets.Get(ctx, mesh.CASecret, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("reading Secret %s: %w", mesh.CASecret, err)
		}
		now, err := decode(got.Data)
		if err != nil {
			return Damaged{err}
		}
		if known := s.CA(); older(now, known) {
			now = known
		}
		next, err := change(now)
		if err != nil {
			return err
		}
		// What could not be signed with after a restart must not be stored.
		if _, err := next.State(s.config, s.clock); err != nil {
			return err
		}
		out := got.DeepCopy()
		if out.Data, err = encode(next); err != nil {
			return err
		}
		if _, err := secrets.Update(ctx, out, metav1.UpdateOptions{FieldManager: mesh.FieldManager}); err != nil {
			return err
		}
		return s.adopt(next)
	})
}

// Run follows the Secret until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { kubeobject.WatchSecret(ctx, s.client, mesh.Namespace, mesh.CASecret, s.see) })
	ticker := s.clock.NewTicker(rederive)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
			if err := s.adopt(s.CA()); err != nil {
				s.log.Error("the CA can no longer sign", "error", err)
			}
		}
	}
}

// see takes the Secret, or has Keep put it right when it is gone or older than what was published.
func (s *Store) see(secret *corev1.Secret) {
	if secret != nil && s.take(secret) {
		return
	}
	select {
	case s.amiss <- struct{}{}:
	default:
	}
}

// older says whether a is of the past of b, as from a backup. Every member has b's bundle by now and takes none of an
// earlier sequence, so what a signs might be believed by nobody.
func older(a, b rotate.CA) bool { return a.Sequence < b.Sequence }

// take reads the Secret as somebody, another replica as a rule, has left it. A damaged one changes nothing; nor does an
// older one, about which it returns false.
func (s *Store) take(secret *corev1.Secret) bool {
	c, err := decode(secret.Data)
	if err == nil && older(c, s.CA()) {
		s.good.Set(0)
		s.log.Error("the CA Secret is older than what was published: restored from a backup? Going on with what it was",
			"secret", mesh.Namespace+"/"+mesh.CASecret, "published", s.CA().Sequence, "found", c.Sequence)
		return false
	}
	if err == nil {
		err = s.adopt(c)
	}
	if err != nil {
		s.good.Set(0)
		s.log.Error("the CA Secret was damaged; going on with what it was", "secret", mesh.Namespace+"/"+mesh.CASecret, "error", err)
		return true
	}
	s.good.Set(1)
	return true
}

// adopt makes c what this replica signs with and publishes.
func (s *Store) adopt(c rotate.CA) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := c.State(s.config, s.clock)
	if err != nil {
		return err
	}
	now := s.keeper.Current()
	s.ca = c
	close(s.changed)
	s.changed = make(chan struct{})
	if same(now, next) {
		return nil
	}
	s.keeper.Set(next)
	s.log.Info("the CA changed", "phase", c.Rotation.Phase, "subject", next.Signer.Certificate().Subject.String(), "roots", len(next.Roots), "bundle", next.Sequence)
	return nil
}

func same(a, b *ca.State) bool {
	return a.Sequence == b.Sequence && bytes.Equal(a.RootsPEM, b.RootsPEM) && a.Signer.Certificate().Equal(b.Signer.Certificate()) && sameTokens(a.Tokens, b.Tokens)
}

func sameTokens(a, b *ca.TokenKeys) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.Signer.ID != b.Signer.ID || len(a.Published) != len(b.Published) {
		return false
	}
	for i := range a.Published {
		if a.Published[i].ID != b.Published[i].ID {
			return false
		}
	}
	return true
}

// Keep looks after the Secret on the replica that holds the Lease, until ctx ends: one that was deleted or exchanged for
// an older one is put back from memory, as a restart would otherwise sign with what nobody trusts, and the keys for
// JWT-SVIDs are rotated.
func (s *Store) Keep(ctx context.Context) {
	ticker := s.clock.NewTicker(rederive)
	defer ticker.Stop()
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("looking after the CA Secret", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.amiss:
		case <-ticker.C():
		}
	}
}

func (s *Store) look(ctx context.Context) error {
	_, due, err := rotate.RotateTokens(s.CA().Tokens, s.clock.Now(), ca.NewTokenKey)
	if err != nil {
		return err
	}
	if due {
		err = s.Update(ctx, func(c rotate.CA) (rotate.CA, error) {
			keys, changed, err := rotate.RotateTokens(c.Tokens, s.clock.Now(), ca.NewTokenKey)
			if changed {
				c.Tokens = keys
				c.Sequence++
			}
			return c, err
		})
		if err == nil || !apierrors.IsNotFound(err) {
			return err
		}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := s.client.CoreV1().Secrets(mesh.Namespace).Get(call, mesh.CASecret, metav1.GetOptions{})
	if err == nil {
		return s.putForward(ctx, got)
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	if err := s.create(call, s.CA()); err != nil {
		return errors.Join(errors.New("the CA Secret was deleted"), err)
	}
	s.log.Error("the CA Secret was deleted; it has been restored from memory")
	return nil
}

// putForward writes what is known over a Secret that is older. A damaged one is left for a person to look at.
func (s *Store) putForward(ctx context.Context, found *corev1.Secret) error {
	if c, err := decode(found.Data); err != nil || !older(c, s.CA()) {
		return nil
	}
	if err := s.Update(ctx, func(c rotate.CA) (rotate.CA, error) { return c, nil }); err != nil {
		return fmt.Errorf("the CA Secret is older than what was published: %w", err)
	}
	s.log.Error("the CA Secret was older than what was published; it has been restored from memory")
	return nil
}
