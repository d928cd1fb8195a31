package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/bundle"
	"github.com/bulwark-mesh/bulwark/citadel/internal/secrets"
	"github.com/bulwark-mesh/bulwark/citadel/internal/store"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// open loads the CA; the API server may be away at a start. A CA Secret that is damaged is an error at once.
func open(ctx context.Context, vault *store.Store, log *slog.Logger) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := vault.Open(ctx)
		if errors.As(err, &store.Damaged{}) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, wait time.Duration) {
		log.Warn("CA not loaded", "error", err, "retryIn", wait.String())
	}))
	return err
}

// reconcile does what only one replica at a time does.
func reconcile(ctx context.Context, s Settings, k clients, vault *store.Store, reg prometheus.Registerer, log *slog.Logger, leading *atomic.Bool) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: k.lease.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("recording events: %w", err)
	}
	defer broadcaster.Shutdown()
	keeper := vault.Keeper()
	bundles := bundle.New(k.bulk, keeper, reg, log)
	workloads := secrets.New(k.bulk, keeper, secrets.Config{TrustDomain: s.TrustDomain, TTL: s.SecretTTL, Fraction: s.RotationFraction},
		clock.RealClock{}, broadcaster.NewRecorder(scheme.Scheme, "bulwark-citadel"), reg, log)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_leading", Help: "1 on the replica that reconciles."}, func() float64 {
		if leading.Load() {
			return 1
		}
		return 0
	}))
	return lead(ctx, k.lease, log, leading, func(ctx context.Context) {
		if err := bundles.Publish(ctx, mesh.Namespace); err != nil {
			log.Warn("publishing the trust bundle", "error", err)
		}
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return bundles.Run(ctx) })
		group.Go(func() error { vault.Keep(ctx); return nil })
		if s.Secrets {
			group.Go(func() error { return workloads.Run(ctx) })
		}
		if err := group.Wait(); err != nil {
			log.Error("reconciling", "error", err)
		}
	})
}
