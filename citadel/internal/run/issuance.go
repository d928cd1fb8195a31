package run

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/issue"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/citadel/internal/revoke"
	"github.com/bulwark-mesh/bulwark/citadel/internal/secrets"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/spool"
)

// spoolBytes is a day of some certificates a second. What does not fit while Mixer is away is lost and counted.
const spoolBytes = 64 << 20

// issuance is the CSR service and what it depends on.
type issuance struct {
	service     *issue.Service
	audit       *auditlog.Log
	revocations *revoke.Store
	keys        *issue.Keys
	events      *spool.Spool
	trust       roots
	mixer       string
	log         *slog.Logger
}

func newIssuance(s Settings, k clients, keeper *ca.Keeper, trust roots, pods *podwatch.Watch, reg prometheus.Registerer, log *slog.Logger) (*issuance, error) {
	dns, err := s.dnsNames()
	if err != nil {
		return nil, err
	}
	own, err := observer(s.TrustDomain)
	if err != nil {
		return nil, err
	}
	i := &issuance{trust: trust, mixer: s.Mixer, log: log, keys: issue.NewKeys(k.issue.Discovery().RESTClient(), clock.RealClock{}, log)}
	if i.events, err = spool.Open(filepath.Join(s.StateDir, "spool"), spoolBytes, own, time.Now); err != nil {
		return nil, err
	}
	observe(reg, i.events)
	i.audit = auditlog.New(i.events, own, clock.RealClock{}, reg)
	i.revocations = revoke.New(k.issue, clock.RealClock{}, reg, log)
	i.service = issue.NewService(issue.Config{
		Keeper: keeper,
		Authorizer: &issue.Authorizer{
			Tokens: &issue.Verifier{Keys: i.keys, Reviewer: issue.NewReviewer(k.issue.AuthenticationV1().TokenReviews(), clock.RealClock{}), Clock: clock.RealClock{}},
			Pods:   &issue.Presence{Watch: pods, Live: k.issue.CoreV1(), Clock: clock.RealClock{}},
			Roots:  trust, TrustDomain: s.TrustDomain, Clock: clock.RealClock{},
		},
		Policy: issue.Policy{TrustDomain: s.TrustDomain, TTL: s.WorkloadTTL, MaxTTL: max(s.WorkloadTTL, s.MaxWorkloadTTL), DNSNames: dns},
		Ready:  i.revocations.Ready, Denied: i.revocations.Denies, Audit: i.audit,
		Clock: clock.RealClock{}, Metrics: reg, Log: log,
	})
	return i, nil
}

// secrets is the configuration of the Secret controller, which heeds revocations and records what it issues as the
// service does.
func (i *issuance) secrets(s Settings) secrets.Config {
	c := s.workloadSecrets()
	c.Denies = func(identity, serial string) bool {
		_, denied := i.revocations.Denies(identity, serial, "")
		return denied
	}
	c.Audit = func(_ string, id spiffe.ID, serial string) {
		i.audit.Issued(auditlog.Decision{
			Method: auditlog.WriteSecret, Protocol: "Kubernetes", Identity: id.String(), Serial: serial,
			Subject: &telemetryv1.Workload{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Identity: id.String()},
		})
	}
	return c
}

// run follows keys and revocations until ctx ends.
func (i *issuance) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.keys.Run(ctx) })
	group.Go(func() error { return i.revocations.Run(ctx) })
	return group.Wait()
}

// flushWithin is how long Citadel stays for Mixer when it ends: what is in the spool then may go with the pod.
const flushWithin = 4 * time.Second

// deliver sends audit events to Mixer under Citadel's own identity until the function it returns is called, which waits a
// little for Mixer to have the last of them.
func (i *issuance) deliver(own *self) (stop func(), err error) {
	id, err := spiffe.New(i.trust.td.Name(), mesh.Namespace, mesh.MixerAccount)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(i.mixer, mtls.DialOptions(mtls.Client(own, i.trust, mtls.OneOf(id)))...)
	if err != nil {
		return nil, fmt.Errorf("Mixer's address %q: %w", i.mixer, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&spool.Sender{Spool: i.events, Conn: conn, Log: i.log}).Run(ctx)
	}()
	return func() {
		within, release := context.WithTimeout(ctx, flushWithin)
		err := wait.PollUntilContextCancel(within, 20*time.Millisecond, true, func(context.Context) (bool, error) { return i.events.Stats().Unacked == 0, nil })
		if err != nil {
			i.log.Error("Mixer does not have all audit events, and they go if the pod is deleted", "events", i.events.Stats().Unacked)
		}
		release()
		cancel()
		<-done
		_ = conn.Close() // there is nothing to do about an error
	}, nil
}

// observer is Citadel's own pod, as it is named in audit events.
func observer(trustDomain string) (*telemetryv1.Workload, error) {
	id, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	return &telemetryv1.Workload{Namespace: mesh.Namespace, Node: os.Getenv("NODE_NAME"), Pod: podName(), ServiceAccount: mesh.CitadelAccount, Identity: id.String()}, nil
}

// observe makes the state of the spool metrics.
func observe(reg prometheus.Registerer, events *spool.Spool) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_spool_bytes", Help: "Size of the audit spool."},
			func() float64 { return float64(events.Stats().Bytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_citadel_spool_unacknowledged_events", Help: "Audit events that Mixer does not have yet."},
			func() float64 { return float64(events.Stats().Unacked) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bulwark_citadel_spool_lost_events_total", Help: "Audit events lost because the spool was full or the disk failed."},
			func() float64 { return float64(events.Stats().Lost) }))
}
