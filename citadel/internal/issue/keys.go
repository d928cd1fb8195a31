package issue

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"
)

const (
	keysEvery   = 5 * time.Minute
	keysRetry   = 10 * time.Second // after a failure; also the least between two fetches that unknown keys cause
	keysTimeout = 5 * time.Second
	// keysGoodFor is how long keys are believed without having been seen again. While the API server is away it makes no
	// tokens, and those it has made end within the hour by default and within two days at most. A day without it is no
	// longer an outage but a partition, in which a key may have been withdrawn.
	keysGoodFor = 24 * time.Hour
)

// Keys are those by which the API server's tokens are verified, as it publishes them (OpenID Connect Discovery 1.0). They
// are safe for concurrent use.
type Keys struct {
	get   func(ctx context.Context, path string) ([]byte, error)
	clock clock.PassiveClock
	log   *slog.Logger

	fetching sync.Mutex // one at a time
	next     time.Time  // when an unknown key may cause a fetch again; held by fetching

	mu  sync.RWMutex
	set keySet
}

type keySet struct {
	issuer  string
	keys    map[string]jose.JSONWebKey // by kid
	fetched time.Time
	// verified is what these keys have verified, by the hash of the token: an agent shows its own with that of every pod.
	verified *lru.Cache
}

// verifiedKept is more than the agents there are.
const verifiedKept = 1 << 13

// NewKeys returns the keys of the API server that the client speaks to. There are none until Run.
func NewKeys(client rest.Interface, c clock.PassiveClock, log *slog.Logger) *Keys {
	return &Keys{clock: c, log: log, get: func(ctx context.Context, path string) ([]byte, error) {
		return client.Get().AbsPath(path).DoRaw(ctx)
	}}
}

// Run fetches the keys again and again, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	for {
		delay := keysEvery
		if err := k.fetch(ctx); err != nil {
			delay = keysRetry
			k.log.Warn("keys of service account tokens not fetched", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(delay, 0.5)):
		}
	}
}

// find returns the key by which a token of the issuer is verified, and the set it is of. It fetches the keys if this one is unknown, but
// seldom: anyone can make up a name.
func (k *Keys) find(ctx context.Context, issuer, id string) (keySet, jose.JSONWebKey, bool) {
	if set, key, known := k.lookup(issuer, id); known {
		return set, key, true
	}
	k.fetching.Lock()
	defer k.fetching.Unlock()
	set, key, known := k.lookup(issuer, id)
	now := k.clock.Now()
	if known || now.Before(k.next) || (set.issuer != "" && set.issuer != issuer) {
		return set, key, known
	}
	k.next = now.Add(wait.Jitter(keysRetry, 0.5))
	if err := k.fetch(ctx); err != nil {
		k.log.Warn("keys of service account tokens not fetched", "error", err)
	}
	return k.lookup(issuer, id)
}

func (k *Keys) lookup(issuer, id string) (keySet, jose.JSONWebKey, bool) {
	set := k.current()
	if issuer != set.issuer || id == "" {
		return set, jose.JSONWebKey{}, false
	}
	key, ok := set.keys[id]
	return set, key, ok
}

// current returns the keys, or an empty set if they have not been seen for too long.
func (k *Keys) current() keySet {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.clock.Since(k.set.fetched) > keysGoodFor {
		return keySet{}
	}
	return k.set
}

func (k *Keys) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	discovery, err := k.get(ctx, "/.well-known/openid-configuration")
	if err != nil {
		return fmt.Errorf("discovery document of the API server: %w", err)
	}
	// The document names an address for the keys, which may be outside. This is where the API server itself has them.
	jwks, err := k.get(ctx, "/openid/v1/jwks")
	if err != nil {
		return fmt.Errorf("keys of the API server: %w", err)
	}
	set, err := parseKeys(discovery, jwks)
	if err != nil {
		return err
	}
	set.fetched = k.clock.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.set = set
	return nil
}

func parseKeys(discovery, jwks []byte) (keySet, error) {
	var document struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(discovery, &document); err != nil {
		return keySet{}, fmt.Errorf("discovery document of the API server: %w", err)
	}
	if document.Issuer == "" {
		return keySet{}, errors.New("discovery document of the API server names no issuer")
	}
	var published jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &published); err != nil {
		return keySet{}, fmt.Errorf("keys of the API server: %w", err)
	}
	set := keySet{issuer: document.Issuer, keys: map[string]jose.JSONWebKey{}, verified: lru.New(verifiedKept)}
	for _, key := range published.Keys {
		if strong(key) {
			set.keys[key.KeyID] = key
		}
	}
	if len(set.keys) == 0 {
		return keySet{}, errors.New("the API server publishes no key that can be used")
	}
	return set, nil
}

// strong reports whether tokens are verified with the key here. What another key has signed is for the API server to say.
func strong(key jose.JSONWebKey) bool {
	switch p := key.Key.(type) {
	case *rsa.PublicKey:
		return p.N.BitLen() >= 2048 && key.KeyID != ""
	case *ecdsa.PublicKey:
		return key.KeyID != ""
	default:
		return false
	}
}
