package pods_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	api "github.com/bulwark-mesh/bulwark/agent/internal/workloadapi"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// node is an agent without kubelet: the test publishes volumes.
type node struct {
	t        *testing.T
	ca       *svidtest.CA
	citadel  *svidtest.Citadel
	bundle   *svid.Bundle
	dir      string
	tokens   string // on the disk, where none is kept, unless a test says otherwise
	log      *slog.Logger
	registry *pods.Registry
	issuer   *identity.Issuer
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("giving sockets to the proxy's user needs root")
	}
	ca := svidtest.New(t, "cluster.local")
	n := &node{t: t, ca: ca, citadel: ca.Serve(time.Hour), dir: t.TempDir(), log: quiet}
	n.tokens = filepath.Join(n.dir, "tokens")
	var err error
	if n.bundle, err = svid.NewBundle("cluster.local", mesh.Namespace, fake.NewClientset(), quiet); err != nil {
		t.Fatal(err)
	}
	if err := n.bundle.Set(ca.PEM()); err != nil {
		t.Fatal(err)
	}
	requester, err := svid.NewRequester(n.citadel.Address, "cluster.local", n.bundle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requester.Close() })
	token := filepath.Join(n.dir, "agent-token")
	if err := os.WriteFile(token, []byte("agents-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.issuer = &identity.Issuer{Requester: requester, Bundle: n.bundle, TrustDomain: "cluster.local", TokenFile: token, Clock: clock.RealClock{}, Metrics: identity.NewMetrics(), Log: quiet}
	n.start()
	t.Cleanup(func() { n.registry.Close() })
	return n
}

func (n *node) start() {
	n.t.Helper()
	var err error
	n.registry, err = pods.New(filepath.Join(n.dir, "state"), n.tokens, n.issuer, n.log, sds.Attach(n.bundle, quiet), api.Attach(n.bundle))
	if err != nil {
		n.t.Fatal(err)
	}
}

// volume is one of kubelet's, at a path as long as kubelet's are: longer than the address of a socket may be.
func (n *node) volume(pod, account string) pods.Volume {
	uid := pod + "-a5d52806-4eb3-4f62-8dfc-d9aa595f63e5"
	return pods.Volume{
		ID:     "csi-" + pod,
		Target: filepath.Join(n.dir, "var/lib/kubelet/pods", uid, "volumes/kubernetes.io~csi/bulwark-identity-volume/mount"),
		Facts:  identity.Facts{Namespace: "finance", Pod: pod, UID: uid, ServiceAccount: account},
	}
}

func (n *node) publish(v pods.Volume, token string) {
	n.t.Helper()
	n.citadel.Account(token, n.ca.ID(v.Facts.Namespace, v.Facts.ServiceAccount))
	if err := n.registry.Publish(v, token, time.Now().Add(time.Hour)); err != nil {
		n.t.Fatal(err)
	}
}

// dial connects as a container of the pod does, where the volume has a short path.
func dial(t *testing.T, v pods.Volume) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+short(t, v), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func short(t *testing.T, v pods.Volume) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Symlink(v.Target, filepath.Join(dir, "v")); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "v", mesh.AgentSocket)
}

type sdsStream struct {
	t      *testing.T
	stream secretservice.SecretDiscoveryService_DeltaSecretsClient
}

func subscribe(t *testing.T, v pods.Volume) *sdsStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := secretservice.NewSecretDiscoveryServiceClient(dial(t, v)).DeltaSecrets(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	s := &sdsStream{t, stream}
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResourceNamesSubscribe: []string{mesh.WorkloadSecretName}})
	return s
}

func (s *sdsStream) send(r *discovery.DeltaDiscoveryRequest) {
	s.t.Helper()
	if err := s.stream.Send(r); err != nil {
		s.t.Fatal(err)
	}
}

// certificate waits for one, and acknowledges it.
func (s *sdsStream) certificate() *x509.Certificate {
	s.t.Helper()
	resp, err := s.stream.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResponseNonce: resp.GetNonce()})
	var secret tls.Secret
	if err := resp.GetResources()[0].GetResource().UnmarshalTo(&secret); err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

func TestClientThatConnectsFirstWaitsForTheSVID(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	if err := n.registry.Publish(v, "", time.Time{}); err != nil { // as after a restart: no token yet
		t.Fatal(err)
	}
	s := subscribe(t, v)
	n.publish(v, "token1")
	if got := s.certificate().URIs[0].String(); got != "spiffe://cluster.local/ns/finance/sa/payroll" {
		t.Fatalf("certificate for %s", got)
	}
	calls := n.citadel.Calls()
	if got := calls[len(calls)-1].Get(mesh.AgentTokenHeader); len(got) != 1 || got[0] != "Bearer agents-token" {
		t.Fatalf("agent's token %q", got)
	}
}

func TestEachSocketHasItsOwnIdentity(t *testing.T) {
	n := newNode(t)
	for _, account := range []string{"payroll", "web", "account-auditor"} {
		v := n.volume("pod-"+account, account)
		n.publish(v, "token-of-"+account)
		if got := subscribe(t, v).certificate().URIs[0].String(); !strings.HasSuffix(got, "/sa/"+account) {
			t.Fatalf("on the socket of %s: %s", account, got)
		}
	}
}

func TestRenewedSVIDIsPushed(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	s := subscribe(t, v)
	first := s.certificate()
	n.registry.Pods()[0].Renew()
	if second := s.certificate(); second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Fatal("the same certificate again")
	}
}

func TestSocketsComeBackAfterARestartInTheSameDirectory(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	conn := dial(t, v) // a client that keeps its connection object, like Envoy
	gone := n.volume("p2", "web")
	n.publish(gone, "token2")
	directory := inode(t, v.Target)
	n.registry.Close()
	if err := os.RemoveAll(gone.Target); err != nil { // this pod goes while no agent is there
		t.Fatal(err)
	}

	n.start()
	if err := n.registry.Restore(); err != nil {
		t.Fatal(err)
	}
	if inode(t, v.Target) != directory {
		t.Fatal("another directory; the pod's mount would show the old one")
	}
	if got := n.registry.Pods(); len(got) != 1 || got[0].Facts != v.Facts {
		t.Fatalf("restored %d pods", len(got))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := secretservice.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	s := &sdsStream{t, stream}
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResourceNamesSubscribe: []string{mesh.WorkloadSecretName}})
	n.publish(v, "token1") // kubelet's next round
	s.certificate()
	state, err := filepath.Glob(filepath.Join(n.dir, "state", "*"))
	if err != nil || len(state) != 1 {
		t.Fatalf("state %v, %v", state, err)
	}
	if b, err := os.ReadFile(state[0]); err != nil || strings.Contains(string(b), "token1") || strings.Contains(string(b), "PRIVATE") {
		t.Fatalf("state on disk: %s, %v", b, err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}

func TestSocketBelongsToTheProxyAlone(t *testing.T) {
	n := newNode(t)
	check := func(v pods.Volume, mode os.FileMode) {
		t.Helper()
		st, err := os.Stat(filepath.Join(v.Target, mesh.AgentSocket))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != mesh.ProxyUID || sys.Gid != mesh.ProxyGID || st.Mode().Perm() != mode {
			t.Fatalf("owner %d:%d, mode %o", sys.Uid, sys.Gid, st.Mode().Perm())
		}
		module, err := os.Stat(filepath.Join(v.Target, closer.File(closer.Version)))
		if err != nil || module.Mode().Perm() != 0o444 || module.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Fatalf("the module, which the proxy is to read and nobody to change: %v, %v", module, err)
		}
		if entries, err := os.ReadDir(v.Target); err != nil || len(entries) != 2 {
			t.Fatalf("%v, %v", entries, err)
		}
	}
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	check(v, 0o600)
	anyone := n.volume("p2", "payroll")
	anyone.Any = true
	n.publish(anyone, "token2")
	check(anyone, 0o666)
}

func TestRepublishingRepairsALostSocket(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	if err := os.Remove(filepath.Join(v.Target, mesh.AgentSocket)); err != nil {
		t.Fatal(err)
	}
	n.publish(v, "token1")
	subscribe(t, v).certificate()
	before := len(n.citadel.Calls())
	for range 5 {
		n.publish(v, "token1")
	}
	if after := len(n.citadel.Calls()); after != before {
		t.Fatalf("republishing an unchanged token asked Citadel %d times", after-before)
	}
}

func TestUnpublishLeavesNothing(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	stream := subscribe(t, v)
	stream.certificate()
	for range 2 { // kubelet may say it twice
		if err := n.registry.Unpublish(v.ID, v.Target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(v.Target); !os.IsNotExist(err) {
		t.Fatalf("directory: %v", err)
	}
	if state, _ := filepath.Glob(filepath.Join(n.dir, "state", "*")); len(state) > 0 || len(n.registry.Pods()) > 0 {
		t.Fatalf("state %v, pods %v", state, n.registry.Pods())
	}
	if _, err := stream.stream.Recv(); err == nil {
		t.Fatal("the stream of a pod that is gone lives on")
	}
}

func TestPodCannotTakeOverAnothersVolume(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	thief := n.volume("p2", "web")
	thief.ID = v.ID
	if err := n.registry.Publish(thief, "token2", time.Time{}); err == nil {
		t.Fatal("a volume changed hands")
	}
	renamed := v
	renamed.ID, renamed.Facts.ServiceAccount = "csi-other", "admin"
	if err := n.registry.Publish(renamed, "token2", time.Time{}); err == nil {
		t.Fatal("a pod changed its service account")
	}
}

func TestWorkloadAPI(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+short(t, v))))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	first, err := source.GetX509SVID()
	if err != nil || first.ID.String() != "spiffe://cluster.local/ns/finance/sa/payroll" {
		t.Fatalf("%v, %v", first, err)
	}
	if b, err := source.GetX509BundleForTrustDomain(first.ID.TrustDomain()); err != nil || !b.HasX509Authority(n.ca.Cert) {
		t.Fatalf("bundle: %v", err)
	}
	updated := source.Updated()
	n.registry.Pods()[0].Renew()
	select {
	case <-updated:
	case <-ctx.Done():
		t.Fatal("no update")
	}
	bundles, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr("unix://"+short(t, v)))
	if err != nil || bundles.Len() != 1 {
		t.Fatalf("%v, %v", bundles, err)
	}
	stream, err := workload.NewSpiffeWorkloadAPIClient(dial(t, v)).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("without the security header: %v", err)
	}
}
