package secrets

import (
	"cmp"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/settings"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Config is what configuration says about workload Secrets.
type Config struct {
	TrustDomain string
	TTL         time.Duration // of the certificates
	Fraction    float64       // of its life after which a certificate is renewed
	Jitter      float64       // of its life by which that moment is shifted at most, either way
	Minimum     time.Duration // that must be left of its life at that moment; 0 is DefaultMinimum
	OptIn       bool          // only namespaces labelled mesh.SecretsLabel=enabled have Secrets; else all that are not labelled "disabled"
	KeyType     ca.KeyType    // of the keys; ca.P256 if empty

	// Denies, if set, tells of an identity (serial is empty) or one certificate of it whether it is revoked. An account whose
	// identity is has no Secret; a certificate that is gets replaced. Both are looked at each minute.
	Denies func(identity, serial string) bool

	// Audit, if set, is told of every certificate before it is written; serial is lower-case hexadecimal. It must not block.
	Audit func(reason string, id spiffe.ID, serial string)
}

// DefaultMinimum is how long kubelet takes at most to put a changed Secret into a volume.
const DefaultMinimum = 2 * time.Minute

// minimum is what must be left: of a very short life, by default, a tenth.
func (c Config) minimum() time.Duration { return cmp.Or(c.Minimum, min(DefaultMinimum, c.TTL/10)) }

// denies says whether the account's identity is revoked, or its certificate of a serial number.
func (c Config) denies(k key, serial string) bool {
	if c.Denies == nil {
		return false
	}
	id, err := spiffe.New(c.TrustDomain, k.Namespace, k.Name)
	return err == nil && c.Denies(id.String(), serial)
}

// Validate returns what is wrong with the configuration.
func (c Config) Validate() error {
	return settings.Rotation{TTL: c.TTL, Fraction: c.Fraction, Jitter: c.Jitter, Minimum: c.Minimum}.Validate()
}
