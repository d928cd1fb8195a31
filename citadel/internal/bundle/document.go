package bundle

import (
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

// refreshHint is how often those that fetch the bundle should look. A rotation does not wait for them, so it is short.
const refreshHint = 5 * time.Minute

// Of returns the SPIFFE bundle of a state: its roots, and the public halves of the keys for JWT-SVIDs.
func Of(trustDomain string, state *ca.State) (*spiffebundle.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain of the bundle: %w", err)
	}
	b := spiffebundle.New(td)
	for _, root := range state.Roots {
		b.AddX509Authority(root)
	}
	if state.Tokens != nil {
		for _, k := range state.Tokens.Published {
			if err := b.AddJWTAuthority(k.ID, k.Key.Public()); err != nil {
				return nil, fmt.Errorf("key %s of the bundle: %w", k.ID, err)
			}
		}
	}
	b.SetSequenceNumber(state.Sequence)
	b.SetRefreshHint(refreshHint)
	return b, nil
}

// Documents makes the bundle of a state a document, once: every namespace and every stream has the same. It is safe for
// concurrent use.
type Documents struct {
	TrustDomain string

	mu       sync.Mutex
	of       *ca.State
	document []byte
}

// Document returns the bundle of a state as a JWK set (SPIFFE Trust Domain and Bundle, section 4).
func (d *Documents) Document(state *ca.State) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == state {
		return d.document, nil
	}
	b, err := Of(d.TrustDomain, state)
	if err != nil {
		return nil, err
	}
	document, err := b.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the trust bundle: %w", err)
	}
	d.of, d.document = state, document
	return document, nil
}
