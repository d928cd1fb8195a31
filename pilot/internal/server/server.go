package server

import (
	"context"
	"crypto/tls"
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
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	k8sevents "k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/inject"
	"github.com/bulwark-mesh/bulwark/pilot/internal/admission"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/feed"
	"github.com/bulwark-mesh/bulwark/pilot/internal/keyserver"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/status"
	"github.com/bulwark-mesh/bulwark/pilot/internal/validate"
	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	pilotv1 "github.com/bulwark-mesh/bulwark/pkg/api/pilot/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/health"
	"github.com/bulwark-mesh/bulwark/pkg/logging"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Pilot is the running server.
type Pilot struct {
	events   k8sevents.EventRecorder // made by run
	settings Settings
	log      *slog.Logger
	kube     kubernetes.Interface
	registry *registry.Registry
	feed     *feed.Feed
	store    *push.Store
	status   *status.Writer
	keys     *keyserver.Servers
	identity *svid.Source
	health   *health.Server
	pilots   *enforcement.Dialed // the others
	census   *enforcement.Census
}

// Run runs Pilot until ctx ends.
func Run(ctx context.Context, s Settings) error {
	log, err := logging.New(os.Stderr, "pilot", s.LogLevel)
	if err != nil {
		return err
	}
	config, err := restConfig(s.Kubeconfig)
	if err != nil {
		return err
	}
	p, err := newPilot(s, config, log)
	if err != nil {
		return err
	}
	return p.run(ctx)
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	config.QPS, config.Burst = 50, 100
	config.UserAgent = "bulwark-pilot"
	return config, nil
}

func newPilot(s Settings, config *rest.Config, log *slog.Logger) (*Pilot, error) {
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg, err := registry.New()
	if err != nil {
		return nil, err
	}
	objects, err := feed.New(reg, kube, dyn, s.authz(), feed.NewMetrics(metrics), log)
	if err != nil {
		return nil, err
	}
	identity, err := svid.NewSource(svid.Options{TrustDomain: s.TrustDomain, Client: kube, TokenFile: s.TokenFile, Citadel: s.Citadel, Log: log})
	if err != nil {
		return nil, err
	}
	own, err := os.Hostname() // a pod's name
	if err != nil {
		return nil, fmt.Errorf("name of this Pilot: %w", err)
	}
	store := push.NewStore(s.compile(), reg.Snapshot(), push.NewMetrics(metrics), log)
	pilots := enforcement.Dial(mtls.Client(identity, identity, mtls.OneOf(s.pilots()...)))
	p := &Pilot{
		settings: s, log: log, kube: kube, registry: reg, feed: objects, identity: identity, health: health.New(metrics), store: store,
		status: status.NewWriter(dyn, reg.Snapshot, objects.Stored, metrics, log),
		pilots: pilots, census: enforcement.NewCensus(store, pilots, reg.Snapshot, s.RootNamespace, own),
	}
	p.keys = p.keyServers(keyserver.Options{Memory: keyserver.Memory{ConfigMaps: kube.CoreV1().ConfigMaps(mesh.Namespace)}, Metrics: metrics, Log: log})
	return p, nil
}

// pilots are the identities that a Pilot of the mesh may have.
func (s Settings) pilots() (out []spiffe.ID) {
	for _, domain := range s.authz().TrustDomains() {
		out = append(out, spiffe.ID{TrustDomain: domain, Namespace: mesh.Namespace, ServiceAccount: mesh.PilotAccount})
	}
	return out
}

func (s Settings) authz() authz.Options {
	authorizers, err := authorizer.Parse(s.ExtensionProviders)
	if err != nil {
		authorizers = nil // which Validate has refused; without it, what policies would have asked is denied
	}
	balancers, err := proxyprotocol.Networks(s.LoadBalancers)
	if err != nil {
		balancers = nil // which Validate has refused; nobody is believed
	}
	return authz.Options{TrustDomain: s.TrustDomain, TrustDomainAliases: s.TrustDomainAliases, RootNamespace: s.RootNamespace, TrustedProxies: s.TrustedProxies, LoadBalancers: balancers, Authorizers: authorizers}
}

func (s Settings) compile() compile.Settings {
	return compile.SettingsOf(s.authz())
}

// run owns every goroutine of Pilot: one ends, all end.
func (p *Pilot) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	broadcaster := k8sevents.NewBroadcaster(&k8sevents.EventSinkImpl{Interface: p.kube.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("recording events: %w", err)
	}
	defer broadcaster.Shutdown()
	p.events = broadcaster.NewRecorder(scheme.Scheme, "bulwark-pilot")
	p.feed.OnHeld(p.announceHeld)
	p.health.AddReady("registry", p.feed.Synced)
	p.health.AddReady("identity", p.hasIdentity)
	g.Go(func() error { return p.health.Serve(ctx, p.settings.Listen.Monitoring) })
	g.Go(func() error {
		return p.feed.Run(ctx, func(snap *registry.Snapshot, changes []registry.Change) {
			p.store.Apply(snap, changes)
			p.status.Apply(snap, changes)
			p.keys.Apply(snap, changes)
		})
	})
	g.Go(func() error { return p.status.Run(ctx) })
	g.Go(func() error { return p.keys.Run(ctx) })
	g.Go(func() error { return p.followMeshKeys(ctx) })
	defer p.pilots.Close()
	g.Go(func() error { return p.identity.Run(ctx) })
	g.Go(func() error {
		if err := p.identity.WaitReady(ctx); err != nil {
			return ended(ctx, err)
		}
		g.Go(func() error { return p.serveXDS(ctx) })
		g.Go(func() error { return p.status.Follow(ctx, p.census, p.store) })
		g.Go(func() error { return p.serveWebhooks(ctx) })
		g.Go(func() error { return p.serveOperator(ctx) })
		return nil
	})
	return g.Wait()
}

func (p *Pilot) hasIdentity() error {
	_, err := p.identity.GetX509SVID()
	return err
}

// ended drops an error that is only the end of the program.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// keysPatience is how long proxies wait for a Pilot that has just started and cannot reach a key server.
const keysPatience = 10 * time.Second

// serveXDS starts when the registry holds the cluster: a proxy must never be told that what is merely not known yet is not there.
func (p *Pilot) serveXDS(ctx context.Context) error {
	if err := p.waitSynced(ctx); err != nil {
		return ended(ctx, err)
	}
	within, cancel := context.WithTimeout(ctx, keysPatience)
	p.keys.WaitTried(within)
	cancel()
	l, err := mtls.Listen(ctx, p.settings.Listen.XDS)
	if err != nil {
		return fmt.Errorf("xDS: %w", err)
	}
	secure := mtls.Server(p.identity, p.identity, mtls.MemberOf(p.settings.authz().TrustDomains()...))
	options := append(mtls.ServerOptions(secure, mtls.Limits{MaxConcurrentStreams: 8}), grpc.ForceServerCodecV2(deltaxds.Codec()))
	srv := grpc.NewServer(options...)
	nodev1.RegisterNodeConfigurationServer(srv, push.NewServer(p.store, push.Options{
		Certificate: mtls.PeerCertificate, MaxProxies: p.settings.MaxProxies, Recorder: p.events, UnknownKey: p.demandKeys,
		Clock: clock.RealClock{}, Log: p.log,
	}))
	pilotv1.RegisterEnforcementServer(srv, &enforcement.Server{Store: p.store, Caller: mtls.PeerID, Allow: p.settings.pilots()})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	p.log.Info("serving xDS", "address", l.Addr().String())
	if err := srv.Serve(l); err != nil {
		return fmt.Errorf("xDS: %w", err)
	}
	return nil
}

func (p *Pilot) waitSynced(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for p.feed.Synced() != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// serveWebhooks starts when the registry holds the cluster, as a namespace that is not known has no labels.
func (p *Pilot) serveWebhooks(ctx context.Context) error {
	if err := p.waitSynced(ctx); err != nil {
		return ended(ctx, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/inject", admission.Handler(inject.Pods(p.injectConfig, p.namespaceLabels, func(ns string) []corev1.LimitRangeItem { return p.registry.Snapshot().LimitsIn(ns) }, p.log), p.log))
	mux.Handle("/advise", admission.Handler(inject.Templates(p.injectConfig(), p.namespaceLabels), p.log))
	mux.Handle("/validate", admission.Handler(validate.Objects(p.settings.authz()), p.log))
	srv := &http.Server{
		Addr: p.settings.Listen.Webhook, Handler: mux, TLSConfig: mtls.ServerWithoutClientCert(p.identity),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	srv.TLSConfig.NextProtos = []string{"http/1.1"}
	srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ListenAndServeTLS("", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("webhooks: %w", err)
	}
	return nil
}

// namespaceLabels asks the API server for a namespace so new that the informers have not shown it.
func (p *Pilot) namespaceLabels(ctx context.Context, name string) (map[string]string, error) {
	if ns := p.registry.Snapshot().Namespace(name); ns != nil {
		return ns.Labels, nil
	}
	ns, err := p.kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("labels of namespace %s: %w", name, err)
	}
	return ns.Labels, nil
}

func (p *Pilot) injectConfig() inject.Config {
	i := p.settings.Inject
	return inject.Config{
		TrustDomain: p.settings.TrustDomain, ProxyImage: i.ProxyImage, AgentImage: i.AgentImage, PullPolicy: i.PullPolicy,
		ProxyCPU: i.CPU, ProxyCPUMax: i.CPULimit, ProxyMemory: i.Memory, ProxyMemoryMax: i.MemoryLimit, ProxyLogLevel: i.ProxyLogLevel,
		ClusterName: p.settings.ClusterName, ProxyWorkers: i.Workers, CNI: i.CNI, LoadBalancers: len(p.settings.LoadBalancers) > 0, IPv6: compile.IPv6(compile.ServiceRanges(p.registry.Snapshot())),
	}
}

// serveOperator serves what meshctl asks Pilot.
func (p *Pilot) serveOperator(ctx context.Context) error {
	api := operatorapi.New(p.kube.AuthenticationV1().TokenReviews(), p.log)
	api.HandleJSON("GET /v1/proxies", func(*http.Request) (any, error) { return p.store.Proxies(), nil })
	api.HandleJSON("GET /v1/policies", func(*http.Request) (any, error) { return registry.Unenforceable(p.registry.Snapshot()), nil })
	api.HandleJSON("GET /v1/enforced", p.enforced)
	api.HandleJSON("GET /v1/config", func(r *http.Request) (any, error) { return p.store.Config(r.URL.Query().Get("proxy")) })
	api.HandleJSON("GET /v1/reach", p.reach)
	api.HandleJSON("GET /v1/held", func(*http.Request) (any, error) { return p.feed.Held(), nil })
	api.HandleJSON("POST /v1/held/confirm", p.confirmHeld)
	return api.Serve(ctx, p.settings.Listen.Operator, mtls.ServerWithoutClientCert(p.identity))
}
