package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	k8sevents "k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/als"
	"github.com/bulwark-mesh/bulwark/agent/internal/csi"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/metrics"
	"github.com/bulwark-mesh/bulwark/agent/internal/outage"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/agent/internal/relay"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	"github.com/bulwark-mesh/bulwark/agent/internal/workloadapi"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/cniready"
	"github.com/bulwark-mesh/bulwark/pkg/health"
	"github.com/bulwark-mesh/bulwark/pkg/logging"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/spool"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Run runs the agent until ctx ends.
func Run(ctx context.Context, s Settings) (err error) {
	log, err := logging.New(os.Stderr, "agent", s.LogLevel)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log)
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("Kubernetes client: %w", err)
	}
	source, err := svid.NewSource(svid.Options{TrustDomain: s.TrustDomain, Client: client, Citadel: s.Citadel, TokenFile: s.TokenFile, Log: log})
	if err != nil {
		return err
	}
	requester, err := svid.NewRequester(s.Citadel, s.TrustDomain, source.Bundle)
	if err != nil {
		return err
	}
	defer requester.Close()
	mixer, err := dialMixer(s, source)
	if err != nil {
		return err
	}
	defer mixer.Close()
	events, err := spool.Open(filepath.Join(s.StateDir, "spool"), int64(s.SpoolBytes), &telemetryv1.Workload{Node: s.NodeName}, time.Now)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counters := metrics.New()
	identities := identity.NewMetrics()
	identities.Register(registry)
	issuer := &identity.Issuer{
		Requester: requester, Bundle: source.Bundle, TrustDomain: s.TrustDomain, TokenFile: s.TokenFile, TTL: s.WorkloadTTL,
		Clock: clock.RealClock{}, Metrics: identities, Log: log,
	}
	configuration := relay.New(relay.Config{Pilot: s.Pilot, TrustDomain: s.TrustDomain, Agent: source, Bundle: source.Bundle, Clock: clock.RealClock{},
		Metrics: relay.NewMetrics(registry), Log: log})
	node, err := pods.New(filepath.Join(s.StateDir, "pods"), s.TokenDir, issuer, log,
		sds.Attach(source.Bundle, log),
		configuration.Attach,
		workloadapi.Attach(source.Bundle),
		als.Attach(events, als.Hears{UnknownKey: configuration.UnknownKey, Tried: counters.Tried}, s.NodeName, registry),
		counters.Attach)
	if err != nil {
		return err
	}
	defer node.Close()
	if err := node.Restore(); err != nil {
		log.Error("sockets of earlier pods", "error", err) // the others work; kubelet will ask for these again
	}
	observe(registry, events, node, source)
	source.Report(func(h *identityv1.Holding) {
		var signer []byte
		if trust, _, err := source.Bundle.Current(); err == nil {
			signer = trust.Signer
		}
		addPods(h, node.Pods(), signer, time.Now())
	})

	driver := csi.New(node, csi.Config{
		Node: s.NodeName, PodsDir: s.PodsDir, Socket: s.CSISocket, Endpoint: s.CSIEndpoint, RegistrationSocket: s.RegistrationSocket,
		PluginReady: func(ctx context.Context) error { return cniready.Ask(ctx, mesh.CNISocket) },
	}, log)
	monitor := health.New(prometheus.Gatherers{registry, counters})
	monitor.AddLive("CSI driver", driver.Alive)
	monitor.AddReady("CSI driver", driver.Registered)
	monitor.AddReady("identity", func() error {
		if st := source.Status(); st.State == svid.Pending || st.State == svid.Expired {
			return fmt.Errorf("the agent's own SVID is %s: %w", st.State, cmp.Or(st.LastError, svid.ErrPending))
		}
		return nil
	})
	operator := operatorapi.New(client.AuthenticationV1().TokenReviews(), log)
	operator.HandleJSON("GET /v1/workloads", func(*http.Request) (any, error) { return workloads(node.Pods()), nil })
	operator.HandleJSON("GET /v1/workloads/{uid}", func(r *http.Request) (any, error) { return detailOf(node.Pods(), r.PathValue("uid")) })

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error { return configuration.Run(ctx) })
	group.Go(func() error { return watchOutages(ctx, s.NodeName, client, node) })
	group.Go(func() error { return driver.Serve(ctx) })
	group.Go(func() error { return driver.ServeRegistration(ctx) })
	group.Go(func() error { return monitor.Serve(ctx, s.HealthAddress) })
	group.Go(func() error { return operator.Serve(ctx, s.OperatorAddress, mtls.ServerWithoutClientCert(source)) })
	group.Go(func() error { (&spool.Sender{Spool: events, Conn: mixer, Log: log}).Run(ctx); return nil })
	group.Go(func() error {
		(&metrics.Reporter{Sink: counters, Pods: node.Pods, Node: s.NodeName, Conn: mixer, Log: log}).Run(ctx)
		return nil
	})
	return group.Wait()
}

func dialMixer(s Settings, source *svid.Source) (*grpc.ClientConn, error) {
	id, err := spiffe.New(s.TrustDomain, mesh.Namespace, mesh.MixerAccount)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(s.Mixer, mtls.DialOptions(mtls.Client(source, source, mtls.OneOf(id)))...)
	if err != nil {
		return nil, fmt.Errorf("Mixer's address %q: %w", s.Mixer, err)
	}
	return conn, nil
}

// watchOutages records events while identities of the node's pods are not renewed.
func watchOutages(ctx context.Context, name string, client kubernetes.Interface, node *pods.Registry) error {
	broadcaster := k8sevents.NewBroadcaster(&k8sevents.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("recording events: %w", err)
	}
	defer broadcaster.Shutdown()
	(&outage.Watch{Node: name, Pods: node.Pods, Recorder: broadcaster.NewRecorder(scheme.Scheme, "bulwark-agent"), Clock: clock.RealClock{}}).Run(ctx)
	return nil
}
