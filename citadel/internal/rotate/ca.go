// Package rotate moves the mesh from one CA to another without a failed connection: the new root is published first and
// seen by everyone, then it signs, then, when no certificate of the old one is left, the old root is withdrawn.
//
// What is here is a state machine of values: CA is the state as it is stored, the functions of this package are its
// transitions, Waiting says what a transition still waits for. The conductor drives it on the replica that holds the
// Lease.
package rotate

import (
	"errors"
	"fmt"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

// Phase is where a rotation is.
type Phase string

// The phases in their order. A rotation that is aborted while the new key signs goes through Signing once more, with the
// old key as the new one.
const (
	Idle       Phase = ""           // no rotation
	Publishing Phase = "publishing" // the next root is in the bundle; the current one signs
	Signing    Phase = "signing"    // the new key signs; certificates of the previous one are renewed
	Retiring   Phase = "retiring"   // the previous root has been withdrawn from the bundle
)

// Origin says where a CA's key comes from.
type Origin string

const (
	SelfSigned Origin = "self-signed" // Citadel made it
	PluggedIn  Origin = "plugged-in"  // from Secret cacerts
	Upstream   Origin = "upstream"    // signed by a signer of the CertificateSigningRequest API
)

// Signer is a CA that signs, will sign or has signed.
type Signer struct {
	Material ca.Material
	Origin   Origin
}

// CA is all that is stored of the mesh's authority. It is a value: transitions return another.
type CA struct {
	Current  Signer
	Next     *Signer // while Publishing
	Previous *Signer // while Signing and Retiring
	Sequence uint64  // of the bundle; rises when its content changes
	Rotation Rotation
	Tokens   []ca.TokenKey // keys for JWT-SVIDs, oldest first
}

// Rotation is what an operator wants to know of a rotation.
type Rotation struct {
	Phase    Phase     `json:"phase,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Since    time.Time `json:"since,omitzero"` // of this phase
	Paused   bool      `json:"paused,omitempty"`
	Aborting bool      `json:"aborting,omitempty"`
	Forced   bool      `json:"forced,omitempty"` // an operator does not want to wait for what this phase waits for
	Last     string    `json:"last,omitempty"`   // how the rotation before this one ended
	LastAt   time.Time `json:"lastAt,omitzero"`
}

// ErrUnderWay is why a rotation cannot be started.
var ErrUnderWay = errors.New("a root rotation is under way; let it end, or abort it")

// ErrNone is why there is nothing to pause, resume, force or abort.
var ErrNone = errors.New("no root rotation is under way")

// Begin starts a rotation to another CA. One with the same roots, an intermediate that was renewed, needs none: it signs
// at once.
func Begin(c CA, next Signer, reason string, now time.Time) (CA, error) {
	if c.Rotation.Phase != Idle {
		return c, ErrUnderWay
	}
	if sameRoots(c.Current.Material, next.Material) {
		c.Current = next
		c.Rotation.Last, c.Rotation.LastAt = "the signing certificate was replaced under the same root: "+reason, stamp(now)
		return c, nil
	}
	c.Next = &next
	c.Sequence++
	c.Rotation = Rotation{Phase: Publishing, Reason: reason, Started: stamp(now), Since: stamp(now), Last: c.Rotation.Last, LastAt: c.Rotation.LastAt}
	return c, nil
}

// Advance goes on to the next phase.
func Advance(c CA, now time.Time) (CA, error) {
	switch c.Rotation.Phase {
	case Publishing:
		if c.Next == nil {
			return c, errors.New("the next CA is missing")
		}
		previous := c.Current
		c.Current, c.Previous, c.Next = *c.Next, &previous, nil
		c.Rotation.Phase = Signing
	case Signing:
		c.Rotation.Phase = Retiring
		c.Sequence++
	case Retiring:
		outcome := "completed: " + c.Rotation.Reason
		if c.Rotation.Aborting {
			outcome = "aborted: " + c.Rotation.Reason
		}
		c.Previous = nil
		c.Rotation = Rotation{Last: outcome, LastAt: stamp(now)}
		return c, nil
	default:
		return c, ErrNone
	}
	c.Rotation.Since, c.Rotation.Forced = stamp(now), false
	return c, nil
}

// Abort goes back to the CA from before the rotation. While the new root is only published, nobody uses it: it is
// withdrawn. When certificates of it exist, they are renewed by the old key first. When the old root is withdrawn, there
// is no way back but another rotation.
func Abort(c CA, now time.Time) (CA, error) {
	switch {
	case c.Rotation.Phase == Idle:
		return c, ErrNone
	case c.Rotation.Aborting:
		return c, errors.New("the rotation is being aborted already")
	case c.Rotation.Phase == Publishing:
		c.Next = nil
		c.Sequence++
		c.Rotation = Rotation{Last: "aborted: " + c.Rotation.Reason, LastAt: stamp(now)}
		return c, nil
	case c.Rotation.Phase == Signing && c.Previous != nil:
		back := *c.Previous
		previous := c.Current
		c.Current, c.Previous = back, &previous
		c.Rotation.Aborting, c.Rotation.Paused, c.Rotation.Forced, c.Rotation.Since = true, false, false, stamp(now)
		return c, nil
	default:
		return c, errors.New("the old root has been withdrawn already; to go back to it, plug it in and rotate again")
	}
}

// Pause keeps the rotation in its phase until Resume.
func Pause(c CA) (CA, error) {
	if c.Rotation.Phase == Idle {
		return c, ErrNone
	}
	c.Rotation.Paused = true
	return c, nil
}

// Resume undoes Pause.
func Resume(c CA) (CA, error) {
	if c.Rotation.Phase == Idle {
		return c, ErrNone
	}
	c.Rotation.Paused = false
	return c, nil
}

// Force lets the rotation leave the phase it is in, whatever it waits for.
func Force(c CA) (CA, error) {
	if c.Rotation.Phase == Idle {
		return c, ErrNone
	}
	c.Rotation.Forced, c.Rotation.Paused = true, false
	return c, nil
}

// Validate checks that the parts of what was stored fit its phase.
func (c CA) Validate() error {
	switch r := c.Rotation.Phase; {
	case r != Idle && r != Publishing && r != Signing && r != Retiring:
		return fmt.Errorf("unknown phase %q of a root rotation", r)
	case r == Publishing && c.Next == nil:
		return errors.New("a root rotation is publishing, and the next CA is missing")
	case (r == Signing || r == Retiring) && c.Previous == nil:
		return errors.New("a root rotation is under way, and the previous CA is missing")
	}
	return nil
}

func sameRoots(a, b ca.Material) bool {
	x, err := a.Roots()
	if err != nil {
		return false
	}
	y, err := b.Roots()
	if err != nil || len(x) != len(y) {
		return false
	}
	for i := range x {
		if !x[i].Equal(y[i]) {
			return false
		}
	}
	return true
}

// stamp is a time as it is stored: without its monotonic reading, in whole seconds.
func stamp(t time.Time) time.Time { return t.Round(0).UTC().Truncate(time.Second) }
