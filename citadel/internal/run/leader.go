package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discoveryapply "k8s.io/client-go/applyconfigurations/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	utilnet "k8s.io/utils/net"

	"github.com/bulwark-mesh/bulwark/citadel/internal/bundle"
	"github.com/bulwark-mesh/bulwark/citadel/internal/conductor"
	"github.com/bulwark-mesh/bulwark/citadel/internal/holdings"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
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

// leader is what one replica at a time does: it reconciles Secrets and bundles, hears who holds what and drives root
// rotations.
type leader struct {
	settings  Settings
	clients   clients
	store     *store.Store
	bundles   *bundle.Controller
	workloads *secrets.Controller
	holdings  *holdings.Server
	pods      *podwatch.Watch
	conductor *conductor.Conductor
	log       *slog.Logger
	leading   isLeading
}

// newLeader puts it together; the recorder's Events go out while ctx lasts.
func newLeader(ctx context.Context, s Settings, k clients, vault *store.Store, origins *origin.Origins, issuance *issuance, documents *bundle.Documents, h *holdings.Server, pods *podwatch.Watch, reg prometheus.Registerer, log *slog.Logger) (*leader, error) {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: k.lease.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return nil, fmt.Errorf("recording events: %w", err)
	}
	context.AfterFunc(ctx, broadcaster.Shutdown)
	recorder := broadcaster.NewRecorder(scheme.Scheme, "bulwark-citadel")
	l := &leader{
		settings: s, clients: k, store: vault, holdings: h, pods: pods, log: log,
		bundles:   bundle.New(k.bulk, vault.Keeper(), documents, reg, log),
		workloads: secrets.New(k.bulk, vault.Keeper(), issuance.secrets(s), clock.RealClock{}, recorder, reg, log),
	}
	l.conductor = &conductor.Conductor{
		Store: vault, Origins: origins, Config: s.rotation(), Observe: l.observe, Heard: h.Changed, Clock: clock.RealClock{}, Events: recorder, Log: log,
	}
	l.conductor.Register(reg)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_leading", Help: "1 on the replica that reconciles."}, func() float64 {
		if l.leading.Load() {
			return 1
		}
		return 0
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_bundle_holders_behind",
		Help: "Pods of Pilot, Citadel, Mixer and agents that do not hold the current trust bundle, or whose proxies do not; 0 on a replica that does not lead."}, l.holdersBehind))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_token_key_timestamp_seconds", Help: "When the newest key for JWT-SVIDs was made; a new one is made each day."}, func() float64 {
		keys := vault.CA().Tokens
		if len(keys) == 0 {
			return 0
		}
		return float64(keys[len(keys)-1].Created.Unix())
	}))
	return l, nil
}

func (l *leader) holdersBehind() float64 {
	if !l.leading.Load() {
		return 0
	}
	current, behind := l.store.Keeper().Current().Sequence, 0
	for _, h := range l.holdings.Holders() {
		if !h.Heard || min(h.Sequence, h.ProxiesSequence) < current {
			behind++
		}
	}
	return float64(behind)
}

// run leads whenever this replica holds the Lease, until ctx ends.
func (l *leader) run(ctx context.Context) error {
	return lead(ctx, l.clients.lease, l.log, &l.leading, func(ctx context.Context) {
		if err := l.bundles.Publish(ctx, mesh.Namespace); err != nil {
			l.log.Warn("publishing the trust bundle", "error", err)
		}
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { l.holdings.Lead(ctx); return nil })
		group.Go(func() error { l.announce(ctx); return nil })
		group.Go(func() error { return l.bundles.Run(ctx) })
		group.Go(func() error { l.store.Keep(ctx); return nil })
		group.Go(func() error { l.conductor.Run(ctx); return nil })
		if l.settings.Secrets {
			group.Go(func() error { return l.workloads.Run(ctx) })
		}
		if err := group.Wait(); err != nil {
			l.log.Error("reconciling", "error", err)
		}
	})
}

// observe is what this replica sees of the mesh.
func (l *leader) observe() rotate.Observation {
	b, o := l.bundles.Progress(), rotate.Observation{Holders: l.holdings.Holders()}
	o.Settling, o.BundlesBehind, o.BundlesWritten = b.Settling, b.Behind, b.Written
	if l.settings.Secrets {
		p := l.workloads.Progress()
		o.Settling = o.Settling || !p.Leading
		o.SecretsBehind, o.SecretsOld, o.SecretsWritten = p.OldBundle+p.Missing, p.OldSigner, p.LastWrite
		if p.Syncing && o.SecretsBehind == 0 && o.SecretsOld == 0 {
			o.SecretsBehind = p.Accounts - p.Foreign - p.Ready // not looked at since the change
		}
	}
	for _, pod := range l.pods.All() {
		if pod.Ended {
			continue
		}
		if pod.MountsSecret {
			o.MountsOfSecrets++
		}
		if pod.MountsBundle && pod.Component == "" {
			o.MountsOfBundle++
		}
	}
	return o
}

// announce makes this replica the one endpoint of the leader's Service: the others and the other components find it
// there. A leader that died is found out by whoever dials it, until the next one has put itself in its place.
func (l *leader) announce(ctx context.Context) {
	addresses := strings.FieldsFunc(os.Getenv("POD_IPS"), func(r rune) bool { return r == ',' })
	if len(addresses) == 0 {
		l.log.Warn("POD_IPS is not set: nobody can watch the trust bundle")
		return
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, applyEndpoints(ctx, l.clients.lease, addresses) },
		backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, wait time.Duration) {
			l.log.Warn("announcing this replica as the leader", "error", err, "retryIn", wait.String())
		}))
	if err != nil && ctx.Err() == nil {
		l.log.Error("announcing this replica as the leader", "error", err)
	}
}

// applyEndpoints writes a slice for each family of the pod's addresses: which comes first is the network plugin's choice, and which the Service has, the cluster's.
func applyEndpoints(ctx context.Context, client kubernetes.Interface, addresses []string) error {
	for _, ip := range addresses {
		if err := applyEndpoint(ctx, client, ip); err != nil {
			return err
		}
	}
	return nil
}

func applyEndpoint(ctx context.Context, client kubernetes.Interface, ip string) error {
	ctx, cancel := context.WithTimeout(ctx, renewDeadline)
	defer cancel()
	name, family := mesh.CitadelLeader, discoveryv1.AddressTypeIPv4
	if utilnet.IsIPv6String(ip) { // which of a slice that is there cannot be changed
		name, family = name+"-ipv6", discoveryv1.AddressTypeIPv6
	}
	slice := discoveryapply.EndpointSlice(name, mesh.Namespace).
		WithLabels(map[string]string{discoveryv1.LabelServiceName: mesh.CitadelLeader, discoveryv1.LabelManagedBy: "bulwark-citadel", mesh.PartOfLabel: mesh.PartOfValue}).
		WithAddressType(family).
		WithEndpoints(discoveryapply.Endpoint().WithAddresses(ip).WithConditions(discoveryapply.EndpointConditions().WithReady(true))).
		WithPorts(discoveryapply.EndpointPort().WithName("grpc-csr").WithProtocol(corev1.ProtocolTCP).WithPort(mesh.CSRPort))
	_, err := client.DiscoveryV1().EndpointSlices(mesh.Namespace).Apply(ctx, slice, metav1.ApplyOptions{FieldManager: mesh.FieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("EndpointSlice %s/%s: %w", mesh.Namespace, name, err)
	}
	return nil
}
