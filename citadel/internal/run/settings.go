// Package run puts Citadel together from its settings.
package run

import (
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/citadel/internal/secrets"
	"github.com/bulwark-mesh/bulwark/pkg/settings"
)

// Settings of Citadel.
type Settings settings.Citadel

// Defaults suit most clusters.
func Defaults() Settings { return Settings(settings.CitadelDefaults()) }

// Validate implements config.Validator.
func (s Settings) Validate() error { return settings.Citadel(s).Validate() }

// dnsNames are those of each account.
func (s Settings) dnsNames() (map[string][]string, error) {
	return settings.Citadel(s).NamesByAccount()
}

// rotation is what the settings say about the CA itself. Certificates of an earlier signer are renewed within a tenth of
// their life, an hour at most.
func (s Settings) rotation() rotate.Config {
	return rotate.Config{
		TrustDomain: s.TrustDomain, RootTTL: s.RootTTL, KeyType: ca.KeyType(s.KeyType),
		RenewWithin: min(time.Hour, s.WorkloadTTL/10), Settle: s.KubeletSync,
	}
}

func (s Settings) workloadSecrets() secrets.Config {
	return secrets.Config{TrustDomain: s.TrustDomain, TTL: s.SecretTTL, Fraction: s.RotationFraction, Jitter: s.RotationJitter, Minimum: s.RotationMinimum, OptIn: s.SecretsOptIn, KeyType: ca.KeyType(s.KeyType)}
}

// upstream is the signer above Citadel. A tenth of a root's life, a year as a rule, is asked for.
func (s Settings) upstream() origin.UpstreamConfig {
	return origin.UpstreamConfig{Signer: s.UpstreamSigner, Roots: s.UpstreamRoots, TTL: s.RootTTL / 10}
}
