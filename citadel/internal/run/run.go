package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	securityapi "istio.io/api/security/v1alpha1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/bundle"
	"github.com/bulwark-mesh/bulwark/citadel/internal/holdings"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/citadel/internal/store"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/health"
	"github.com/bulwark-mesh/bulwark/pkg/logging"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
)

// Run runs Citadel until ctx ends.
func Run(ctx context.Context, s Settings) error {
	log, err := logging.New(os.Stderr, "citadel", s.LogLevel)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log)
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	clients, err := newClients(config, s.KubeQPS)
	if err != nil {
		return err
	}
	return serve(ctx, s, clients, log)
}

// clients keep what must not wait apart from bulk work: a first start writes thousands of Secrets.
type clients struct{ bulk, issue, lease kubernetes.Interface }

func newClients(config *rest.Config, qps float64) (clients, error) {
	var out clients
	for _, c := range []struct {
		to    *kubernetes.Interface
		qps   float32
		burst int
	}{{&out.bulk, float32(qps), int(qps)}, {&out.issue, 1000, 1000}, {&out.lease, 20, 20}} {
		own := rest.CopyConfig(config)
		own.QPS, own.Burst, own.UserAgent = c.qps, c.burst, "bulwark-citadel"
		if c.to == &out.lease {
			own.Timeout = renewDeadline
		}
		client, err := kubernetes.NewForConfig(own)
		if err != nil {
			return out, fmt.Errorf("Kubernetes client: %w", err)
		}
		*c.to = client
	}
	return out, nil
}

func serve(ctx context.Context, s Settings, k clients, log *slog.Logger) (err error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	monitor := health.New(registry)
	var serving atomic.Bool
	monitor.AddReady("CSR service", func() error {
		if !serving.Load() {
			return errors.New("not serving yet")
		}
		return nil
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return monitor.Serve(ctx, s.HealthAddress) })

	origins := &origin.Origins{Client: k.issue, Rotation: s.rotation(), Upstream: s.upstream(), Clock: clock.RealClock{}}
	vault := store.New(k.issue, s.rotation(), clock.RealClock{}, origins.First, registry, log)
	if err := open(ctx, vault, log); err != nil {
		return errors.Join(err, group.Wait())
	}
	keeper := vault.Keeper()
	group.Go(func() error { return vault.Run(ctx) })
	pods, err := podwatch.New(k.issue, log)
	if err != nil {
		return err
	}
	group.Go(func() error { return pods.Run(ctx) })
	trust, err := newRoots(keeper, s.TrustDomain)
	if err != nil {
		return err
	}
	issuance, err := newIssuance(s, k, keeper, trust, pods, registry, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, issuance.events.Close()) }()
	monitor.AddReady("revocations", issuance.revocations.Ready)
	self, err := newSelf(issuance.service, s.TrustDomain, log)
	if err != nil {
		return err
	}
	documents := &bundle.Documents{TrustDomain: s.TrustDomain}
	held := holdings.New(keeper, pods, documents, issuance.audit, log)
	leader, err := newLeader(ctx, s, k, vault, origins, issuance, documents, held, pods, registry, log)
	if err != nil {
		return err
	}
	peer, err := newPeer(trust, self, held, &leader.leading, log)
	if err != nil {
		return err
	}
	api := operatorapi.New(k.issue.AuthenticationV1().TokenReviews(), log)
	(&operator{leader: leader, origins: origins, revocations: issuance.revocations, audit: issuance.audit, trustDomain: s.TrustDomain}).register(api)
	flush, err := issuance.deliver(self)
	if err != nil {
		return err
	}
	defer flush() // when nobody issues any more
	group.Go(func() error { self.Run(ctx); return nil })
	group.Go(func() error { return issuance.run(ctx) })
	group.Go(func() error {
		return serveCSR(ctx, s.CSRAddress, mtls.ServerWithOptionalClientCert(self, trust, mtls.MemberOf(s.TrustDomain)), self, &serving, func(r grpc.ServiceRegistrar) {
			securityapi.RegisterIstioCertificateServiceServer(r, issuance.service)
			identityv1.RegisterTokensServer(r, issuance.service)
			identityv1.RegisterTrustBundlesServer(r, held)
		})
	})
	group.Go(func() error { return api.Serve(ctx, s.OperatorAddress, mtls.ServerWithoutClientCert(self)) })
	group.Go(func() error {
		return bundle.ServeEndpoint(ctx, s.BundleAddress, mtls.ServerWithoutClientCert(self), s.TrustDomain, keeper, log)
	})
	group.Go(func() error { return peer.run(ctx) })
	group.Go(func() error { return leader.run(ctx) })
	err = group.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func serveCSR(ctx context.Context, addr string, config *tls.Config, self *self, serving *atomic.Bool, register func(grpc.ServiceRegistrar)) error {
	select {
	case <-self.Ready():
	case <-ctx.Done():
		return nil
	}
	l, err := mtls.Listen(ctx, addr)
	if err != nil {
		return fmt.Errorf("CSR service: %w", err)
	}
	server := grpc.NewServer(mtls.ServerOptions(config, mtls.Limits{MaxRecvMsgSize: 64 << 10})...)
	register(server)
	stop := context.AfterFunc(ctx, func() {
		serving.Store(false)
		force := time.AfterFunc(5*time.Second, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	defer stop()
	serving.Store(true)
	if err := server.Serve(l); err != nil {
		return fmt.Errorf("CSR service: %w", err)
	}
	return nil
}
