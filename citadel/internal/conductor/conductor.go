// Package conductor drives root rotations, on the replica that holds the Lease: it begins those that are due, looks at what
// the mesh holds, and goes on to the next phase when nobody is behind.
package conductor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/citadel/internal/store"
	"github.com/bulwark-mesh/bulwark/pkg/kubeevent"
	"github.com/bulwark-mesh/bulwark/pkg/kubeobject"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

const (
	// look is how often the mesh is looked at during a rotation besides when it says something: for the time that kubelet
	// needs, and for Secrets and ConfigMaps, which say nothing.
	look = time.Second
	// rest is the least time between two looks: thousands of agents may say something in a second, and each look is at all.
	rest = 200 * time.Millisecond
	// lookIdle is how often it is looked whether a rotation is due.
	lookIdle = time.Minute
	// retryAfter is how long after a failure a new CA is asked for again.
	retryAfter = time.Minute
)

// Conductor drives rotations while its Run lasts; it may be run again.
type Conductor struct {
	Store   *store.Store
	Origins *origin.Origins
	Config  rotate.Config
	Observe func() rotate.Observation
	Heard   func() <-chan struct{} // closed when Observe may return something else
	Clock   clock.WithTicker
	Events  events.EventRecorder
	Log     *slog.Logger

	mu      sync.Mutex
	plugged *corev1.Secret // cacerts, nil if there is none
	waits   []rotate.Wait
	failed  string    // why the CA that should be is not of use
	retry   time.Time // when it is asked for again
}

// Register makes the rotation's state metrics.
func (c *Conductor) Register(reg prometheus.Registerer) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	is := func(yes bool) float64 {
		if yes {
			return 1
		}
		return 0
	}
	for _, phase := range []rotate.Phase{rotate.Publishing, rotate.Signing, rotate.Retiring} {
		gauge("bulwark_citadel_rotation", "1 for the phase that a root rotation is in.", prometheus.Labels{"phase": string(phase)},
			func() float64 { return is(c.Store.CA().Rotation.Phase == phase) })
	}
	gauge("bulwark_citadel_rotation_phase_seconds", "For how long a root rotation has been in its phase; 0 when there is none.", nil, func() float64 {
		r := c.Store.CA().Rotation
		if r.Phase == rotate.Idle {
			return 0
		}
		return c.Clock.Now().Sub(r.Since).Seconds()
	})
	gauge("bulwark_citadel_rotation_waits", "How many things a root rotation waits for, on the replica that leads.", nil, func() float64 { return float64(len(c.Waits())) })
	gauge("bulwark_citadel_ca_unusable", "1 while the plugged-in or upstream CA cannot be used, on the replica that leads.", nil, func() float64 {
		_, failed := c.Trouble()
		return is(failed)
	})
	gauge("bulwark_citadel_signer_expiry_timestamp_seconds", "When the certificate of the key that signs ends.", nil,
		func() float64 { return float64(c.Store.Keeper().Current().Signer.Certificate().NotAfter.Unix()) })
	gauge("bulwark_citadel_root_expiry_timestamp_seconds", "When the first root of the bundle ends.", nil, func() float64 {
		first := time.Time{}
		for _, r := range c.Store.Keeper().Current().Roots {
			if first.IsZero() || r.NotAfter.Before(first) {
				first = r.NotAfter
			}
		}
		return float64(first.Unix())
	})
}

// Waits returns what the rotation waits for, as it was seen last on this replica.
func (c *Conductor) Waits() []rotate.Wait {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits
}

// Trouble returns why the CA that should sign is of no use, if that is so.
func (c *Conductor) Trouble() (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed, c.failed != ""
}

// Run drives rotations until ctx ends.
func (c *Conductor) Run(ctx context.Context) {
	defer c.note(nil)
	plugged := make(chan struct{}, 1) // Secret cacerts was looked at, or has changed
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() { c.watchPlugged(ctx, plugged) })
	select {
	case <-plugged:
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		changed, heard := c.Store.Changed(), c.Heard()
		pause := lookIdle
		moved, err := c.turn(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			c.Log.Warn("root rotation", "error", err)
			pause = look
		case moved:
			continue
		case c.Store.CA().Rotation.Phase != rotate.Idle:
			pause = look
		default:
			heard = nil // what anyone holds matters during a rotation only
		}
		timer := c.Clock.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-heard:
			c.rest(ctx)
		case <-plugged:
		case <-timer.C():
		}
		timer.Stop()
	}
}

func (c *Conductor) watchPlugged(ctx context.Context, changed chan<- struct{}) {
	kubeobject.WatchSecret(ctx, c.Origins.Client, mesh.Namespace, mesh.PluggedCASecret, func(secret *corev1.Secret) {
		c.mu.Lock()
		c.plugged = secret
		c.mu.Unlock()
		select {
		case changed <- struct{}{}:
		default:
		}
	})
}

func (c *Conductor) rest(ctx context.Context) {
	timer := c.Clock.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C():
	}
}

// turn does one thing: begin a rotation that is due, or go on to the next phase. It reports whether it did.
func (c *Conductor) turn(ctx context.Context) (bool, error) {
	now := c.Store.CA()
	if now.Rotation.Phase == rotate.Idle {
		c.note(nil)
		return c.begin(ctx, now)
	}
	waits := c.waiting(now)
	c.note(waits)
	if _, ready, err := rotate.Step(now, waits, c.Clock.Now()); err != nil || !ready {
		return false, err
	}
	err := c.Do(ctx, func(stored rotate.CA) (rotate.CA, error) {
		// What is waited for was seen for the phase and bundle that this replica knows; if another has been faster, look again.
		if stored.Rotation.Phase != now.Rotation.Phase || stored.Sequence != now.Sequence {
			return stored, errors.New("the rotation has gone on without this replica")
		}
		next, _, err := rotate.Step(stored, waits, c.Clock.Now())
		return next, err
	})
	return err == nil, err
}

func (c *Conductor) waiting(now rotate.CA) []rotate.Wait {
	signer := c.Store.Keeper().Current().Signer.Certificate().SubjectKeyId
	return rotate.Waiting(now, c.Observe(), signer, c.Config.Settle, c.Clock.Now())
}

// begin starts a rotation when the CA that should sign is not the one that does.
func (c *Conductor) begin(ctx context.Context, now rotate.CA) (bool, error) {
	next, reason, err := c.wanted(ctx, now)
	c.fail(err)
	if err != nil || next == nil {
		return false, err
	}
	if err := c.Start(ctx, *next, reason); err != nil {
		return false, err
	}
	return true, nil
}

// wanted returns the CA that should sign and why, or nil when it is the one that does.
func (c *Conductor) wanted(ctx context.Context, now rotate.CA) (*rotate.Signer, string, error) {
	c.mu.Lock()
	secret := c.plugged
	c.mu.Unlock()
	plugged, err := c.Origins.OfSecret(secret)
	switch {
	case err == nil && bytes.Equal(plugged.Material.Cert, now.Current.Material.Cert) && bytes.Equal(plugged.Material.Root, now.Current.Material.Root):
		return nil, "", nil
	case err == nil:
		return &plugged, "Secret " + mesh.PluggedCASecret + " holds another CA", nil
	case !errors.Is(err, origin.ErrNotPlugged):
		return nil, "", err
	}
	signer := c.Store.Keeper().Current().Signer.Certificate()
	life, left := signer.NotAfter.Sub(signer.NotBefore), signer.NotAfter.Sub(c.Clock.Now())
	var reason string
	switch upstream := c.Origins.Upstream.Signer; {
	case upstream != "" && now.Current.Origin != rotate.Upstream:
		reason = "signer " + upstream + " is configured"
	case upstream != "" && left < life/2:
		reason = "half of the life of the certificate from " + upstream + " is over"
	case upstream == "" && now.Current.Origin == rotate.SelfSigned && left < life/5:
		reason = "four fifths of the root's life are over"
	default:
		return nil, "", nil
	}
	if c.Clock.Now().Before(c.retryAt()) {
		return nil, "", nil
	}
	next, err := c.Origins.Next(ctx)
	return &next, reason, err
}

// Start begins a rotation to a CA.
func (c *Conductor) Start(ctx context.Context, next rotate.Signer, reason string) error {
	return c.Do(ctx, func(stored rotate.CA) (rotate.CA, error) { return rotate.Begin(stored, next, reason, c.Clock.Now()) })
}

// Do stores a change of the rotation, such as rotate.Pause, and tells of it.
func (c *Conductor) Do(ctx context.Context, change func(rotate.CA) (rotate.CA, error)) error {
	var before, after rotate.CA
	err := c.Store.Update(ctx, func(stored rotate.CA) (rotate.CA, error) {
		next, err := change(stored)
		before, after = stored, next
		return next, err
	})
	if err == nil {
		c.tell(before, after)
	}
	return err
}

// tell says in the log and as an Event what happened to the rotation.
func (c *Conductor) tell(before, after rotate.CA) {
	var what, action string
	was, is := before.Rotation, after.Rotation
	switch {
	case is.Phase == rotate.Idle:
		what, action = is.Last, "End"
	case was.Phase != is.Phase && is.Phase == rotate.Publishing:
		what, action = "a root rotation has begun ("+is.Reason+"): the next root is being published", "Begin"
	case was.Phase != is.Phase && is.Phase == rotate.Signing:
		what, action = "everyone holds the next root: it signs from now on", "Sign"
	case was.Phase != is.Phase && is.Phase == rotate.Retiring:
		what, action = "every certificate has been renewed: the previous root is withdrawn", "Retire"
	case is.Aborting && !was.Aborting:
		what, action = "the root rotation is aborted: the previous root signs again", "Abort"
	case is.Paused != was.Paused:
		what, action = "the root rotation goes on", "Resume"
		if is.Paused {
			what, action = "the root rotation is paused", "Pause"
		}
	case is.Forced && !was.Forced:
		what, action = "the root rotation goes on without waiting, by an operator's word", "Force"
	default:
		return
	}
	c.Log.Info("root rotation", "what", what, "phase", is.Phase, "bundle", after.Sequence)
	if c.Events != nil {
		c.Events.Eventf(&corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: mesh.Namespace, Name: mesh.CASecret}, kubeevent.Apart(what),
			corev1.EventTypeNormal, "RootRotation", action, "%s", printable.Text(what))
	}
}

func (c *Conductor) note(waits []rotate.Wait) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = waits
}

func (c *Conductor) retryAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retry
}

// fail keeps why there is no CA to rotate to, and says it once.
func (c *Conductor) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		if !c.Clock.Now().Before(c.retry) {
			c.failed = ""
		}
		return
	}
	c.retry = c.Clock.Now().Add(retryAfter)
	if c.failed == err.Error() {
		return
	}
	c.failed = err.Error()
	if c.Events != nil {
		c.Events.Eventf(&corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: mesh.Namespace}, kubeevent.Apart(c.failed),
			corev1.EventTypeWarning, "CANotUsable", "Rotate", "%s", printable.Text(c.failed))
	}
}
