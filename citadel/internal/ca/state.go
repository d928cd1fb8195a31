package ca

import (
	"crypto/x509"
	"sync"
	"time"
)

// State is what Citadel signs with and what it publishes, at one moment. It is immutable.
type State struct {
	Signer      *Authority
	Roots       []*x509.Certificate // the trust bundle; more than Signer's own during a root rotation
	RootsPEM    []byte              // the same, as it is published
	Tokens      *TokenKeys
	Sequence    uint64        // of the bundle; rises with every change of Roots or Tokens
	RenewWithin time.Duration // the time over which certificates of an earlier signer are renewed
}

// Keeper holds the current State. It is safe for concurrent use.
type Keeper struct {
	mu      sync.RWMutex
	current *State
	changed chan struct{}
}

// NewKeeper returns a keeper of the first state.
func NewKeeper(first *State) *Keeper {
	return &Keeper{current: first, changed: make(chan struct{})}
}

// Current returns the state. Work that signs and publishes takes it once, so that what it writes fits together.
func (k *Keeper) Current() *State {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.current
}

// Changed returns a channel that is closed at the next change. Take it before looking at Current.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.changed
}

// Set makes a state the current one.
func (k *Keeper) Set(s *State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = s
	close(k.changed)
	k.changed = make(chan struct{})
}
