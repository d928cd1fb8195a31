// Package server puts Mixer's parts together and runs them.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/bulwark-mesh/bulwark/mixer/internal/audit"
	"github.com/bulwark-mesh/bulwark/mixer/internal/dashboard"
	"github.com/bulwark-mesh/bulwark/mixer/internal/ingest"
	"github.com/bulwark-mesh/bulwark/mixer/internal/traffic"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/health"
	"github.com/bulwark-mesh/bulwark/pkg/logging"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Settings are Mixer's configuration.
type Settings struct {
	LogLevel          string        `mapstructure:"logLevel" usage:"debug, info, warn or error"`
	TrustDomain       string        `mapstructure:"trustDomain" usage:"the mesh's SPIFFE trust domain"`
	AuditDir          string        `mapstructure:"auditDir" usage:"directory of the audit trail, on a volume that outlives the pod"`
	TelemetryAddress  string        `mapstructure:"telemetryAddress" usage:"listen address of the intake"`
	MonitoringAddress string        `mapstructure:"monitoringAddress" usage:"listen address of metrics and health"`
	OperatorAddress   string        `mapstructure:"operatorAddress" usage:"listen address of the operator API and dashboard"`
	ShutdownTimeout   time.Duration `mapstructure:"shutdownTimeout" usage:"how long to wait at the end for accepted events to be written"`
}

// Validate implements config.Validator.
func (s Settings) Validate() error {
	if _, err := spiffe.New(s.TrustDomain, "n", "s"); err != nil {
		return err
	}
	if s.AuditDir == "" {
		return errors.New("auditDir must be set")
	}
	return nil
}

// Run runs Mixer until ctx ends.
func Run(ctx context.Context, s Settings) error {
	log, err := logging.New(os.Stderr, "mixer", s.LogLevel)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	kubeConfig, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("mixer runs in a pod: %w", err)
	}
	client, err := kubernetes.NewForConfig(kubeConfig)
	if err != nil {
		return fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	healthServer := health.New(registry)
	identity, err := svid.NewSource(svid.Options{TrustDomain: s.TrustDomain, Client: client, Log: log})
	if err != nil {
		return err
	}
	healthServer.AddReady("identity", func() error {
		_, err := identity.GetX509SVID()
		return err
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return healthServer.Serve(ctx, s.MonitoringAddress) })
	group.Go(func() error { return identity.Run(ctx) })
	group.Go(func() error {
		key, err := audit.Signer(ctx, client.CoreV1().Secrets(mesh.Namespace))
		if err != nil {
			return err
		}
		// The log integrates and publishes on its own goroutines until its context ends, which must be after Close.
		logCtx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
		defer stopLog()
		trail, err := audit.Open(logCtx, s.AuditDir, key)
		if err != nil {
			return err
		}
		defer func() {
			closeCtx, cancel := context.WithTimeout(logCtx, s.ShutdownTimeout)
			defer cancel()
			if err := trail.Close(closeCtx); err != nil {
				log.Error("closing the audit trail", "error", err)
			}
		}()
		log.Info("audit trail is open", "dir", s.AuditDir, "events", trail.Size())
		if err := identity.WaitReady(ctx); err != nil {
			return err
		}
		return serve(ctx, s, log, registry, client, identity, trail)
	})
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve runs what needs the trail and the identity.
func serve(ctx context.Context, s Settings, log *slog.Logger, registry *prometheus.Registry, client kubernetes.Interface, identity *svid.Source, trail *audit.Trail) error {
	table := traffic.New(time.Now)
	agent, err := spiffe.New(s.TrustDomain, mesh.Namespace, mesh.AgentAccount)
	if err != nil {
		return err
	}
	citadel, err := spiffe.New(s.TrustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return err
	}
	tlsConfig := mtls.Server(identity, identity, mtls.OneOf(agent, citadel))
	intake := grpc.NewServer(mtls.ServerOptions(tlsConfig, mtls.Limits{})...)
	telemetryv1.RegisterIntakeServer(intake, ingest.New(ingest.Peers{Agent: agent, Citadel: citadel}, trail, table, log, registry))

	operator := operatorapi.New(client.AuthenticationV1().TokenReviews(), log)
	operator.Handle("GET /v1/audit", trail)
	operator.HandleJSON("GET /v1/overview", func(*http.Request) (any, error) { return table.Overview(), nil })
	operator.HandleJSON("GET /v1/checkpoint", func(r *http.Request) (any, error) {
		checkpoint, err := trail.Checkpoint(r.Context())
		return string(checkpoint), err
	})
	operator.Handle("GET /", dashboard.Handler())

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		l, err := mtls.Listen(ctx, s.TelemetryAddress)
		if err != nil {
			return fmt.Errorf("telemetry intake: %w", err)
		}
		stop := context.AfterFunc(ctx, intake.Stop)
		defer stop()
		return intake.Serve(l)
	})
	group.Go(func() error {
		return operator.Serve(ctx, s.OperatorAddress, mtls.ServerWithoutClientCert(identity))
	})
	return group.Wait()
}
