// Package catest makes the states of a CA that tests sign and publish with.
package catest

import "github.com/bulwark-mesh/bulwark/citadel/internal/ca"

// State is of an authority whose roots are the whole bundle, the first one.
func State(signer *ca.Authority, tokens *ca.TokenKeys) *ca.State {
	return &ca.State{Signer: signer, Roots: signer.Roots(), RootsPEM: signer.RootsPEM(), Tokens: tokens, Sequence: 1}
}
