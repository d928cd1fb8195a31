package rotate

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Roots returns the certificates of the bundle, in an order that does not depend on which of them signs: nobody's bundle
// changes when only the signer does.
func (c CA) Roots() ([]*x509.Certificate, error) {
	published := []Signer{c.Current}
	switch {
	case c.Rotation.Phase == Publishing && c.Next != nil:
		published = append(published, *c.Next)
	case c.Rotation.Phase == Signing && c.Previous != nil:
		published = append(published, *c.Previous)
	}
	var out []*x509.Certificate
	for _, s := range published {
		roots, err := s.Material.Roots()
		if err != nil {
			return nil, err
		}
		out = append(out, roots...)
	}
	slices.SortFunc(out, func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotBefore.Compare(b.NotBefore), bytes.Compare(a.Raw, b.Raw))
	})
	return slices.CompactFunc(out, (*x509.Certificate).Equal), nil
}

// Config is what configuration says about rotation.
type Config struct {
	TrustDomain string
	RootTTL     time.Duration // of a root that Citadel makes
	KeyType     ca.KeyType    // of such a root
	RenewWithin time.Duration // the time over which certificates of an earlier signer are renewed
	Settle      time.Duration // how long kubelet may take to bring a changed Secret or ConfigMap into a pod
}

// State returns what Citadel signs with and publishes at a time.
func (c CA) State(config Config, clk clock.PassiveClock) (*ca.State, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	signer, err := Usable(c.Current.Material, config.TrustDomain, clk)
	if err != nil {
		return nil, err
	}
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	return &ca.State{
		Signer: signer, Roots: roots, RootsPEM: ca.EncodeCerts(roots), Tokens: TokenKeysAt(c.Tokens, clk.Now()), Sequence: c.Sequence, RenewWithin: config.RenewWithin,
	}, nil
}

// Usable returns the authority of the material if it can issue certificates of the trust domain that peers accept.
func Usable(m ca.Material, trustDomain string, clk clock.PassiveClock) (*ca.Authority, error) {
	a, err := ca.New(m, clk)
	if err != nil {
		return nil, err
	}
	id, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	if err := a.Try(id); err != nil {
		return nil, fmt.Errorf("the CA cannot serve trust domain %s: %w", trustDomain, err)
	}
	return a, nil
}
