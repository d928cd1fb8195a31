package holdings

import (
	"context"
	"crypto/ecdsa"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/bundle"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// world is a Citadel that serves bundles, and a cluster with an agent and a Pilot.
type world struct {
	t      *testing.T
	ca     rotate.CA
	keeper *ca.Keeper
	client *fake.Clientset
	server *Server
	lead   func() (stop func())
	addr   string
	trust  *x509bundle.Bundle
	trail  *trail
}

// trail keeps audit events.
type trail struct {
	mu     sync.Mutex
	events []*telemetryv1.Event
}

func (l *trail) Append(e *telemetryv1.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return true
}

func (l *trail) all() []*telemetryv1.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func component(name, pod string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: mesh.Namespace, UID: types.UID("u-" + pod), Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue, "app.kubernetes.io/name": name}},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "bulwark-" + name},
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, trail: &trail{}, ca: rotate.CA{Current: rotate.Signer{Material: root}, Sequence: 1}}
	state := w.state()
	w.keeper = ca.NewKeeper(state)
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	w.trust = x509bundle.FromX509Authorities(td, state.Roots)

	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	going := component("agent", "agent-going")
	going.DeletionTimestamp, going.Finalizers = &metav1.Time{Time: time.Now()}, []string{"x/y"}
	w.client = fake.NewClientset(component("agent", "agent-1"), component("pilot", "pilot-1"), going)
	pods, err := podwatch.New(w.client, log)
	if err != nil {
		t.Fatal(err)
	}
	w.server = New(w.keeper, pods, &bundle.Documents{TrustDomain: "cluster.local"},
		auditlog.New(w.trail, nil, clock.RealClock{}, prometheus.NewRegistry()), log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	s := grpc.NewServer(mtls.ServerOptions(mtls.ServerWithOptionalClientCert(w.svid(mesh.CitadelAccount), w.trust, mtls.MemberOf("cluster.local")), mtls.Limits{})...)
	identityv1.RegisterTrustBundlesServer(s, w.server)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	wg.Go(func() { _ = pods.Run(ctx) })
	t.Cleanup(func() { s.Stop(); cancel(); wg.Wait() })
	if err := pods.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.lead = func() func() {
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.server.Lead(ctx) })
		return func() { stop(); wg.Wait() }
	}
	return w
}

func (w *world) state() *ca.State {
	state, err := w.ca.State(rotate.Config{TrustDomain: "cluster.local", RenewWithin: time.Minute}, clock.RealClock{})
	if err != nil {
		w.t.Fatal(err)
	}
	return state
}

func (w *world) svid(account string) *x509svid.SVID {
	key, err := ca.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.svidOf(account, key)
}

func (w *world) svidOf(account string, key *ecdsa.PrivateKey) *x509svid.SVID {
	id, err := spiffe.New("cluster.local", mesh.Namespace, account)
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.state().Signer.Issue(ca.Request{ID: id, PublicKey: key.Public(), TTL: time.Hour})
	if err != nil {
		w.t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id.String()), Certificates: chain, PrivateKey: key}
}

// watch opens a stream as an account, or without a certificate if it is empty.
func (w *world) watch(account string) identityv1.TrustBundles_WatchClient {
	w.t.Helper()
	citadel, err := spiffe.New("cluster.local", mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		w.t.Fatal(err)
	}
	config := mtls.ClientWithoutCert(w.trust, mtls.OneOf(citadel))
	if account != "" {
		config = mtls.Client(w.svid(account), w.trust, mtls.OneOf(citadel))
	}
	conn, err := grpc.NewClient(w.addr, mtls.DialOptions(config)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	w.t.Cleanup(cancel)
	stream, err := identityv1.NewTrustBundlesClient(conn).Watch(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return stream
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

func TestOnlyComponentsWatchAndOnlyTheLeaderAnswers(t *testing.T) {
	w := newWorld(t)
	_, err := w.watch(mesh.PilotAccount).Recv()
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a replica that does not lead: %v", err)
	}
	defer w.lead()()
	eventually(t, "it leads", func() bool { _, err := w.watch(mesh.PilotAccount).Recv(); return err == nil })
	for account, want := range map[string]codes.Code{"": codes.Unauthenticated, "default": codes.PermissionDenied, mesh.AgentAccount: codes.OK, mesh.MixerAccount: codes.OK} {
		if _, err := w.watch(account).Recv(); status.Code(err) != want {
			t.Errorf("%q: %v, want %s", account, err, want)
		}
	}
}

func TestRefusedStreamsAreInTheAuditTrailAndBounded(t *testing.T) {
	w := newWorld(t)
	refused := func(account, identity, reason string, code codes.Code) {
		t.Helper()
		before := len(w.trail.all())
		if _, err := w.watch(account).Recv(); status.Code(err) != code {
			t.Fatalf("%q: %v, want %s", account, err, code)
		}
		events := w.trail.all()[before:]
		if len(events) != 1 {
			t.Fatalf("%q: %d events", account, len(events))
		}
		e := events[0]
		if e.Kind != telemetryv1.Kind_KIND_ISSUANCE || e.Verdict != telemetryv1.Verdict_VERDICT_REFUSED || e.Method != auditlog.WatchBundle || e.SourceIdentity != identity ||
			!strings.Contains(e.Reason, reason) || !strings.HasPrefix(e.SourceAddress, "127.0.0.1:") {
			t.Errorf("%q: %v", account, e)
		}
	}
	refused("", "", "over mutual TLS", codes.Unauthenticated)
	refused("default", "spiffe://cluster.local/ns/"+mesh.Namespace+"/sa/default", "not a component", codes.PermissionDenied)
	if _, err := w.watch(mesh.PilotAccount).Recv(); status.Code(err) != codes.Unavailable || len(w.trail.all()) != 2 {
		t.Errorf("who may watch and comes to the wrong replica: %v, %d events", err, len(w.trail.all()))
	}
	for range 300 {
		if _, err := w.server.admit(t.Context()); status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	if n := len(w.trail.all()); n > 150 {
		t.Errorf("%d events of 300 refusals", n)
	}
}

func TestEveryChangeOfTheBundleIsSent(t *testing.T) {
	w := newWorld(t)
	stop := w.lead()
	defer func() { stop() }()
	stream := w.watch(mesh.PilotAccount)
	eventually(t, "it leads", func() bool {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return w.server.leading != nil
	})
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	next, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if w.ca, err = rotate.Begin(w.ca, rotate.Signer{Material: next}, "a test", time.Now()); err != nil {
		t.Fatal(err)
	}
	w.keeper.Set(w.state())
	second, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	parsed, err := spiffebundle.Parse(td, second.GetDocument())
	if err != nil || len(parsed.X509Authorities()) != 2 || second.GetSequence() != 2 {
		t.Fatalf("bundle %d: %v", second.GetSequence(), err)
	}
	if string(first.GetIssuer()) != string(second.GetIssuer()) {
		t.Error("the issuer changed before the next root signs")
	}
	if w.ca, err = rotate.Advance(w.ca, time.Now()); err != nil {
		t.Fatal(err)
	}
	w.keeper.Set(w.state())
	third, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if string(third.GetIssuer()) == string(second.GetIssuer()) || third.GetSequence() != 2 || third.GetRenewWithin().AsDuration() != time.Minute {
		t.Errorf("the new signer is not told: bundle %d", third.GetSequence())
	}
	stop()
	stop = func() {}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a replica that leads no more goes on sending: %v", err)
	}
}

func TestHoldingsAreOfLivePodsAndOfTheirOwnComponent(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	eventually(t, "it leads", func() bool { _, err := w.watch(mesh.PilotAccount).Recv(); return err == nil })
	for name, c := range map[string]struct {
		account string
		holding *identityv1.Holding
		want    codes.Code
	}{
		"another component":       {mesh.PilotAccount, &identityv1.Holding{Component: "agent", Pod: "agent-1"}, codes.InvalidArgument},
		"another component's pod": {mesh.PilotAccount, &identityv1.Holding{Component: "pilot", Pod: "agent-1"}, codes.NotFound},
		"no pod":                  {mesh.AgentAccount, &identityv1.Holding{Component: "agent", Pod: "agent-9"}, codes.NotFound},
		"an endless name":         {mesh.AgentAccount, &identityv1.Holding{Component: "agent", Pod: strings.Repeat("a", 300)}, codes.InvalidArgument},
		"too many pods":           {mesh.AgentAccount, &identityv1.Holding{Component: "agent", Pod: "agent-1", Behind: make([]string, 21)}, codes.InvalidArgument},
	} {
		stream := w.watch(c.account)
		if err := stream.Send(c.holding); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	member := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "payroll", Namespace: "finance", UID: "u-payroll"}, Spec: corev1.PodSpec{NodeName: "n2",
		Volumes: []corev1.Volume{{Name: "identity", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: mesh.CSIDriver}}}}}}
	if _, err := w.client.CoreV1().Pods("finance").Create(t.Context(), member, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a node with members and no agent is missed", func() bool {
		holders := w.server.Holders()
		return len(holders) == 3 && holders[2].Node == "n2" && !holders[2].Heard
	})
	if err := w.client.CoreV1().Pods("finance").Delete(t.Context(), "payroll", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its last member is gone", func() bool { return len(w.server.Holders()) == 2 })
	silent := func() (n int) {
		for _, h := range w.server.Holders() {
			if !h.Heard {
				n++
			}
		}
		return n
	}
	if got := w.server.Holders(); len(got) != 2 || silent() != 2 {
		t.Fatalf("before anyone said a thing: %+v", got)
	}
	if err := w.watch(mesh.AgentAccount).Send(&identityv1.Holding{Component: "agent", Pod: "agent-1", Sequence: 1, ProxiesSequence: 1, Issuers: map[string]uint32{"ab": 2}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent was heard", func() bool { return silent() == 1 })
}
