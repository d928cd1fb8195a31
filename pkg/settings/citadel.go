// Package settings holds the settings of components that others must be able to check too: meshctl refuses what a component would
// refuse, before anything is changed in a cluster.
package settings

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Citadel has the settings of Citadel; see config.Command for how they are given.
type Citadel struct {
	TrustDomain      string            `mapstructure:"trustDomain" usage:"SPIFFE trust domain of the mesh; it is in every identity, so it cannot change later"`
	RootTTL          time.Duration     `mapstructure:"rootTTL" usage:"lifetime of the self-signed root, when one is made"`
	WorkloadTTL      time.Duration     `mapstructure:"workloadTTL" usage:"lifetime of certificates, when the caller asks for none"`
	MaxWorkloadTTL   time.Duration     `mapstructure:"maxWorkloadTTL" usage:"the longest lifetime a caller gets; 0 is workloadTTL"`
	SecretTTL        time.Duration     `mapstructure:"secretTTL" usage:"lifetime of certificates in workload Secrets"`
	RotationFraction float64           `mapstructure:"rotationFraction" usage:"part of its life after which a certificate in a Secret is renewed"`
	KeyType          string            `mapstructure:"keyType" usage:"kind of the keys that Citadel makes, for its root and for workload Secrets: ecdsa-p256, ecdsa-p384 or rsa-3072"`
	KubeletSync      time.Duration     `mapstructure:"kubeletSync" usage:"how long kubelet takes at most to bring a changed Secret or ConfigMap into pods that mount it; a root rotation waits for it"`
	UpstreamSigner   string            `mapstructure:"upstreamSigner" usage:"signer of the CertificateSigningRequest API that signs Citadel's own certificate, such as clusterissuers.cert-manager.io/corporate; empty for none"`
	UpstreamRoots    string            `mapstructure:"upstreamRoots" usage:"ConfigMap of bulwark-system whose root-cert.pem holds that signer's roots; empty if its answers end with the root"`
	DNSNames         map[string]string `mapstructure:"dnsNames" usage:"DNS names in the certificate of a control plane's service account: account=name,name"`
	RotationJitter   float64           `mapstructure:"rotationJitter" usage:"part of its life by which that moment is shifted at most, either way, so that what was issued together is not renewed together"`
	RotationMinimum  time.Duration     `mapstructure:"rotationMinimum" usage:"what must be left of its life at that moment; 0 is two minutes, which kubelet may take to bring a changed Secret into a pod, or a tenth of the life"`
	SecretsOptIn     bool              `mapstructure:"secretsOptIn" usage:"keep Secrets only in namespaces labelled bulwark.dev/secrets=enabled"`
	Secrets          bool              `mapstructure:"secrets" usage:"keep a Secret with key and certificate for every service account"`
	KubeQPS          float64           `mapstructure:"kubeQPS" usage:"requests a second to the API server for Secrets and bundles"`
	Kubeconfig       string            `mapstructure:"kubeconfig" usage:"kubeconfig file; empty inside a cluster"`
	Mixer            string            `mapstructure:"mixer" usage:"address of Mixer's telemetry intake"`
	StateDir         string            `mapstructure:"stateDir" usage:"directory of the audit spool; it should outlive the container"`
	LogLevel         string            `mapstructure:"logLevel" usage:"debug, info, warn or error"`
	CSRAddress       string            `mapstructure:"csrAddress" usage:"address of the CSR service"`
	BundleAddress    string            `mapstructure:"bundleAddress" usage:"address of the SPIFFE bundle endpoint"`
	HealthAddress    string            `mapstructure:"healthAddress" usage:"address of /metrics, /healthz and /readyz"`
	OperatorAddress  string            `mapstructure:"operatorAddress" usage:"address of the operator API"`
}

// CitadelDefaults suit most clusters.
func CitadelDefaults() Citadel {
	return Citadel{
		TrustDomain: mesh.DefaultTrustDomain, RootTTL: 10 * 365 * 24 * time.Hour,
		WorkloadTTL: 24 * time.Hour, SecretTTL: 24 * time.Hour, RotationFraction: 0.5, RotationJitter: 0.1,
		KeyType: KeyTypes[0], KubeletSync: 2 * time.Minute,
		DNSNames: map[string]string{mesh.PilotAccount: mesh.ServiceHost(mesh.PilotAccount)}, Secrets: true, KubeQPS: 300, LogLevel: "info",
		Mixer: fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.MixerAccount), mesh.TelemetryPort), StateDir: "/var/lib/bulwark",
		CSRAddress: fmt.Sprintf(":%d", mesh.CSRPort), HealthAddress: fmt.Sprintf(":%d", mesh.MonitoringPort),
		BundleAddress: fmt.Sprintf(":%d", mesh.BundlePort), OperatorAddress: fmt.Sprintf(":%d", mesh.OperatorPort),
	}
}

// KeyTypes are the kinds of keys that Citadel can make; the first is the default.
var KeyTypes = []string{"ecdsa-p256", "ecdsa-p384", "rsa-3072"}

// minTTL leaves time for a renewal and its retries.
const minTTL = 30 * time.Second

// Validate implements config.Validator.
func (s Citadel) Validate() error {
	var errs []error
	if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil {
		errs = append(errs, fmt.Errorf("trustDomain %q: %w", s.TrustDomain, err))
	}
	for name, ttl := range map[string]time.Duration{"workloadTTL": s.WorkloadTTL, "secretTTL": s.SecretTTL, "rootTTL": s.RootTTL} {
		if ttl < minTTL {
			errs = append(errs, fmt.Errorf("%s %s is shorter than %s", name, ttl, minTTL))
		}
	}
	if s.MaxWorkloadTTL != 0 && s.MaxWorkloadTTL < s.WorkloadTTL {
		errs = append(errs, fmt.Errorf("maxWorkloadTTL %s is shorter than workloadTTL %s", s.MaxWorkloadTTL, s.WorkloadTTL))
	}
	if s.RootTTL < s.WorkloadTTL || s.RootTTL < s.SecretTTL {
		errs = append(errs, errors.New("rootTTL is shorter than the certificates it should sign"))
	}
	if err := (Rotation{TTL: s.SecretTTL, Fraction: s.RotationFraction, Jitter: s.RotationJitter, Minimum: s.RotationMinimum}).Validate(); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains(KeyTypes, s.KeyType) {
		errs = append(errs, fmt.Errorf("keyType %q; use %s", s.KeyType, strings.Join(KeyTypes, ", ")))
	}
	if s.KubeletSync < 0 || s.KubeletSync > time.Hour {
		errs = append(errs, fmt.Errorf("kubeletSync %s is outside 0 to 1h", s.KubeletSync))
	}
	if s.KubeQPS < 1 {
		errs = append(errs, fmt.Errorf("kubeQPS %g is less than 1", s.KubeQPS))
	}
	if _, err := s.NamesByAccount(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Rotation says when certificates in workload Secrets are renewed.
type Rotation struct {
	TTL      time.Duration // of the certificates
	Fraction float64       // of its life after which a certificate is renewed
	Jitter   float64       // of its life by which that moment is shifted at most, either way
	Minimum  time.Duration // that must be left of its life at that moment; 0 for a default
}

// Bounds of the settings. What remains of a certificate after its renewal is due must do for retries, too; very short
// lives are for tests.
const (
	maxJitter    = 0.2
	minRemaining = 0.1
)

// Validate returns what is wrong with it.
func (c Rotation) Validate() error {
	var errs []error
	if c.TTL < minTTL {
		errs = append(errs, fmt.Errorf("lifetime %s of certificates in Secrets is shorter than %s", c.TTL, minTTL))
	}
	if c.Fraction < 0.2 || c.Fraction > 0.8 {
		errs = append(errs, fmt.Errorf("rotation fraction %g is outside 0.2 to 0.8", c.Fraction))
	}
	if c.Jitter < 0 || c.Jitter > maxJitter {
		errs = append(errs, fmt.Errorf("rotation jitter %g is outside 0 to %g", c.Jitter, maxJitter))
	}
	if c.Minimum < 0 || c.Minimum > c.TTL/2 {
		errs = append(errs, fmt.Errorf("rotation minimum %s is outside 0 to %s, half of a certificate's life", c.Minimum, c.TTL/2))
	}
	if c.Fraction-c.Jitter < minRemaining || c.Fraction+c.Jitter > 1-minRemaining {
		errs = append(errs, fmt.Errorf("rotation fraction %g with jitter %g renews before %g or after %g of a certificate's life",
			c.Fraction, c.Jitter, minRemaining, 1-minRemaining))
	}
	return errors.Join(errs...)
}

// NamesByAccount splits the lists of DNSNames. Only names of the control plane's own services may be given away here.
func (s Citadel) NamesByAccount() (map[string][]string, error) {
	out := map[string][]string{}
	for account, list := range s.DNSNames {
		for _, name := range strings.Split(list, ",") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
				return nil, fmt.Errorf("dnsNames of %s: %q: %s", account, name, e[0])
			}
			out[account] = append(out[account], name)
		}
	}
	return out, nil
}
