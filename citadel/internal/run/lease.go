package run

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Times of the Lease: a replica that was killed is replaced within leaseDuration and a retryPeriod and a half, which leaves
// more than a second of the five that may pass for the next one to fill its caches and write.
const (
	leaseDuration = 3 * time.Second
	renewDeadline = 2 * time.Second
	retryPeriod   = 400 * time.Millisecond
)

// lead calls work whenever this replica holds the Lease, with a context that ends when it no longer does, until ctx
// ends. It gives the Lease up on the way out, so that a replica that is stopped in order is replaced at once.
func lead(ctx context.Context, client kubernetes.Interface, log *slog.Logger, leading *atomic.Bool, work func(context.Context)) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("name for the Lease: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Name: mesh.CitadelAccount, Namespace: mesh.Namespace}, Client: client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}
	var session sync.Mutex // never two sessions of one replica
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, Name: mesh.CitadelAccount, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					session.Lock()
					defer session.Unlock()
					if ctx.Err() != nil {
						return
					}
					log.Info("this replica reconciles Secrets and bundles")
					leading.Store(true)
					defer leading.Store(false)
					work(ctx)
					log.Info("this replica no longer reconciles")
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("leader election: %w", err)
		}
		elector.Run(ctx)
	}
	session.Lock() // until the last session has ended
	defer session.Unlock()
	return nil
}
