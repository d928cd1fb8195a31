// Package run puts the node agent together from its settings.
package run

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Settings of the agent.
type Settings struct {
	NodeName           string        `mapstructure:"nodeName" usage:"name of the Kubernetes node"`
	TrustDomain        string        `mapstructure:"trustDomain" usage:"SPIFFE trust domain of the mesh"`
	WorkloadTTL        time.Duration `mapstructure:"workloadTTL" usage:"lifetime of the pods' certificates; 0 leaves it to Citadel"`
	Citadel            string        `mapstructure:"citadel" usage:"address of Citadel's CSR service"`
	Pilot              string        `mapstructure:"pilot" usage:"address of Pilot's xDS"`
	Mixer              string        `mapstructure:"mixer" usage:"address of Mixer's telemetry intake"`
	TokenFile          string        `mapstructure:"tokenFile" usage:"the agent's own token for Citadel"`
	StateDir           string        `mapstructure:"stateDir" usage:"directory of the node that outlives the agent: the spool, and which pods have a socket"`
	TokenDir           string        `mapstructure:"tokenDir" usage:"directory of the node for the tokens of its pods, which outlive the agent there if it is in memory (tmpfs)"`
	SpoolBytes         int           `mapstructure:"spoolBytes" usage:"size of the audit spool; what does not fit while Mixer is away is lost and counted"`
	CSISocket          string        `mapstructure:"csiSocket" usage:"where the CSI driver listens"`
	CSIEndpoint        string        `mapstructure:"csiEndpoint" usage:"the same place as kubelet sees it"`
	RegistrationSocket string        `mapstructure:"registrationSocket" usage:"where kubelet looks for the driver"`
	PodsDir            string        `mapstructure:"podsDir" usage:"kubelet's directory of pods, at the same path as on the node"`
	Kubeconfig         string        `mapstructure:"kubeconfig" usage:"kubeconfig file; empty inside a cluster"`
	LogLevel           string        `mapstructure:"logLevel" usage:"debug, info, warn or error"`
	HealthAddress      string        `mapstructure:"healthAddress" usage:"address of /metrics, /healthz and /readyz"`
	OperatorAddress    string        `mapstructure:"operatorAddress" usage:"address of the operator API"`
}

// Defaults fit the DaemonSet of the chart.
func Defaults() Settings {
	return Settings{
		NodeName: os.Getenv("NODE_NAME"), TrustDomain: mesh.DefaultTrustDomain, Citadel: svid.DefaultCitadel, TokenFile: svid.DefaultTokenFile,
		Pilot: fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.PilotAccount), mesh.XDSPort),
		Mixer: fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.MixerAccount), mesh.TelemetryPort),

		StateDir: "/var/lib/bulwark", TokenDir: "/run/bulwark/tokens", SpoolBytes: 256 << 20,
		CSISocket: "/csi/csi.sock", CSIEndpoint: "/var/lib/kubelet/plugins/" + mesh.CSIDriver + "/csi.sock",
		RegistrationSocket: "/registration/" + mesh.CSIDriver + "-reg.sock", PodsDir: "/var/lib/kubelet/pods",
		LogLevel: "info", HealthAddress: fmt.Sprintf(":%d", mesh.MonitoringPort), OperatorAddress: fmt.Sprintf(":%d", mesh.OperatorPort),
	}
}

// Validate implements config.Validator.
func (s Settings) Validate() error {
	var errs []error
	if s.NodeName == "" {
		errs = append(errs, errors.New("nodeName is empty"))
	}
	if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil {
		errs = append(errs, fmt.Errorf("trustDomain %q: %w", s.TrustDomain, err))
	}
	if s.WorkloadTTL < 0 || (s.WorkloadTTL > 0 && s.WorkloadTTL < 30*time.Second) {
		errs = append(errs, fmt.Errorf("workloadTTL %s is shorter than 30s", s.WorkloadTTL))
	}
	if s.SpoolBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("spoolBytes %d is less than a mebibyte", s.SpoolBytes))
	}
	return errors.Join(errs...)
}
