// Package run puts Citadel together from its settings.
package run

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/citadel/internal/secrets"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Settings of Citadel.
type Settings struct {
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

// Defaults suit most clusters.
func Defaults() Settings {
	return Settings{
		TrustDomain: mesh.DefaultTrustDomain, RootTTL: 10 * 365 * 24 * time.Hour,
		WorkloadTTL: 24 * time.Hour, SecretTTL: 24 * time.Hour, RotationFraction: 0.5, RotationJitter: 0.1,
		KeyType: string(ca.P256), KubeletSync: 2 * time.Minute,
		DNSNames: map[string]string{mesh.PilotAccount: mesh.ServiceHost(mesh.PilotAccount)}, Secrets: true, KubeQPS: 300, LogLevel: "info",
		Mixer: fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.MixerAccount), mesh.TelemetryPort), StateDir: "/var/lib/bulwark",
		CSRAddress: fmt.Sprintf(":%d", mesh.CSRPort), HealthAddress: fmt.Sprintf(":%d", mesh.MonitoringPort), BundleAddress: fmt.Sprintf(":%d", mesh.BundlePort), OperatorAddress: fmt.Sprintf(":%d", mesh.OperatorPort),
	}
}

// minTTL leaves time for a renewal and its retries.
const minTTL = 30 * time.Second

// Validate implements config.Validator.
func (s Settings) Validate() error {
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
	if err := s.workloadSecrets().Validate(); err != nil {
		errs = append(errs, err)
	}
	if !ca.KeyType(s.KeyType).Valid() {
		errs = append(errs, fmt.Errorf("keyType %q; use %s, %s or %s", s.KeyType, ca.P256, ca.P384, ca.RSA))
	}
	if s.KubeletSync < 0 || s.KubeletSync > time.Hour {
		errs = append(errs, fmt.Errorf("kubeletSync %s is outside 0 to 1h", s.KubeletSync))
	}
	if s.KubeQPS < 1 {
		errs = append(errs, fmt.Errorf("kubeQPS %g is less than 1", s.KubeQPS))
	}
	if _, err := s.dnsNames(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
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

// dnsNames splits the lists. Only names of the control plane's own services may be given away here.
func (s Settings) dnsNames() (map[string][]string, error) {
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
