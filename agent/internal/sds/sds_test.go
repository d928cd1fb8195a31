package sds_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(n *identitytest.Node, p *identity.Identity) secretservice.SecretDiscoveryServiceClient {
	path := n.Socket(func(s grpc.ServiceRegistrar) { sds.Attach(n.Bundle, identitytest.Quiet)(p, s) })
	return secretservice.NewSecretDiscoveryServiceClient(n.Dial(path))
}

type delta struct {
	t      *testing.T
	stream secretservice.SecretDiscoveryService_DeltaSecretsClient
}

func open(t *testing.T, c secretservice.SecretDiscoveryServiceClient, initial map[string]string, names ...string) *delta {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := c.DeltaSecrets(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	d := &delta{t, stream}
	d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResourceNamesSubscribe: names, InitialResourceVersions: initial})
	return d
}

func (d *delta) send(r *discovery.DeltaDiscoveryRequest) {
	d.t.Helper()
	if err := d.stream.Send(r); err != nil {
		d.t.Fatal(err)
	}
}

func (d *delta) next() *discovery.DeltaDiscoveryResponse {
	d.t.Helper()
	r, err := d.stream.Recv()
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func (d *delta) ack(r *discovery.DeltaDiscoveryResponse) {
	d.t.Helper()
	d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResponseNonce: r.GetNonce()})
}

// held is what the pod's one client holds: "<sequence> <number of certificates>", or nothing.
func held(p *identity.Identity) string {
	all := p.Clients()
	if len(all) != 1 {
		return fmt.Sprintf("%d clients", len(all))
	}
	return fmt.Sprintf("%v %d %d", all[0].Trusts, all[0].Sequence, len(all[0].Issuers))
}

func TestWhatAProxyHasIsWhatItHasAcknowledged(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	c := serve(n, p)
	d := open(t, c, nil, mesh.WorkloadSecretName, mesh.RootCASecretName)
	r := d.next()
	if got := held(p); got != "0 clients" {
		t.Fatalf("before it has answered: %s", got)
	}
	d.ack(r)
	n.Eventually("bundle 1 and a certificate", func() bool { return held(p) == "true 1 1" })

	// The keys for tokens change, the roots do not: there is nothing to send, and the proxy is up to date.
	n.Citadel.Publish(n.CA.Message(2))
	n.Eventually("the same roots of bundle 2", func() bool { return held(p) == "true 2 1" })

	other := svidtest.New(t, "cluster.local")
	n.Citadel.Publish(n.CA.Message(3, other.Cert))
	r = d.next()
	d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.SecretType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no"}})
	n.Citadel.Publish(n.CA.Message(4, other.Cert, svidtest.New(t, "cluster.local").Cert))
	r = d.next()
	if got := held(p); got != "true 2 1" {
		t.Fatalf("after a refusal: %s", got)
	}
	d.ack(r)
	n.Eventually("bundle 4", func() bool { return held(p) == "true 4 1" })
	versions := map[string]string{r.GetResources()[0].GetName(): r.GetResources()[0].GetVersion()}
	if err := d.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	n.Eventually("who has no stream has nothing", func() bool { return held(p) == "0 clients" })

	// A proxy that comes back says what it has.
	open(t, c, versions, mesh.RootCASecretName)
	n.Eventually("bundle 4 again", func() bool { return held(p) == "true 4 0" })
}

func TestProxyThatComesWithAnUnknownBundleIsBehind(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	d := open(t, serve(n, p), map[string]string{mesh.RootCASecretName: "from before"}, mesh.RootCASecretName)
	r := d.next()
	if got := held(p); got != "true 0 0" {
		t.Fatalf("before its answer: %s", got)
	}
	d.ack(r)
	n.Eventually("bundle 1", func() bool { return held(p) == "true 1 0" })
}

func TestStateOfTheWorldIsFollowedToo(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := serve(n, p).StreamSecrets(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	request := &discovery.DiscoveryRequest{TypeUrl: deltaxds.SecretType, ResourceNames: []string{mesh.RootCASecretName, p.ID.String()}}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got := held(p); got != "0 clients" {
		t.Fatalf("before its answer: %s", got)
	}
	request.ResponseNonce, request.VersionInfo = resp.GetNonce(), resp.GetVersionInfo()
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	n.Eventually("bundle 1 and a certificate", func() bool { return held(p) == "true 1 1" })
	request.ResourceNames = []string{"spiffe://cluster.local/ns/finance/sa/other"}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.NotFound {
		t.Fatalf("another's secret: %v", err)
	}
}

func TestSecretsBySPIFFEName(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	c := serve(n, p)
	for name, want := range map[string]string{
		"default": "certificate", "ROOTCA": "bundle", "spiffe://cluster.local": "bundle", "spiffe://cluster.local/ns/finance/sa/payroll": "certificate",
		"spiffe://cluster.local/ns/finance/sa/other": "", "spiffe://cluster.local/ns/finance/sa/payroll/": "", "spiffe://other.domain": "",
		"SPIFFE://cluster.local/ns/finance/sa/payroll": "", "kubernetes://payroll": "", "": "",
	} {
		r := open(t, c, nil, name).next()
		if want == "" {
			if len(r.GetResources()) > 0 || !slices.Equal(r.GetRemovedResources(), []string{name}) {
				t.Errorf("%q: %d resources, removed %q", name, len(r.GetResources()), r.GetRemovedResources())
			}
			continue
		}
		var secret tls.Secret
		if len(r.GetResources()) != 1 || r.GetResources()[0].GetResource().UnmarshalTo(&secret) != nil || secret.GetName() != name || r.GetResources()[0].GetName() != name {
			t.Errorf("%q: %v", name, secret.GetName())
			continue
		}
		if got := map[bool]string{true: "certificate", false: "bundle"}[secret.GetTlsCertificate() != nil]; got != want {
			t.Errorf("%q is a %s", name, got)
		}
	}
}

// TestTwoPodsNeverGetTheSameBytes asks for random names on the sockets of several pods, of which two share an account.
func TestTwoPodsNeverGetTheSameBytes(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	var pods []*identity.Identity
	for i, account := range []string{"payroll", "payroll", "web"} {
		p := n.Pod("finance", fmt.Sprintf("pod-%d", i), account)
		n.Ready(p)
		pods = append(pods, p)
	}
	names := []string{"default", "ROOTCA", "spiffe://cluster.local", "*", "x"}
	for _, p := range pods {
		names = append(names, p.ID.String(), p.Facts.Pod, p.Facts.UID, p.String())
	}
	owner := map[string]string{} // certificate or key → pod
	for range 300 {
		p := pods[rand.IntN(len(pods))]
		session := sds.New(p, n.Bundle, identitytest.Quiet).Open()
		r, _ := session.Resource(deltaxds.SecretType, names[rand.IntN(len(names))])
		session.Close()
		if rand.IntN(20) == 0 {
			p.Renew()
		}
		if r == nil {
			continue
		}
		var secret tls.Secret
		if err := proto.Unmarshal(r.Body().GetValue(), &secret); err != nil {
			t.Fatal(err)
		}
		cert := secret.GetTlsCertificate()
		for _, b := range [][]byte{cert.GetCertificateChain().GetInlineBytes(), cert.GetPrivateKey().GetInlineBytes()} {
			if len(b) == 0 {
				continue
			}
			if before, ok := owner[string(b)]; ok && before != p.Facts.Pod {
				t.Fatalf("%s and %s got the same bytes", before, p.Facts.Pod)
			}
			owner[string(b)] = p.Facts.Pod
		}
	}
	if len(owner) < 6 {
		t.Fatalf("only %d certificates and keys were handed out", len(owner))
	}
}

func TestKeysAndTokensAreInNoLogNorString(t *testing.T) {
	var mu sync.Mutex
	var written bytes.Buffer
	log := slog.New(slog.NewTextHandler(writer(func(b []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return written.Write(b) }), &slog.HandlerOptions{Level: slog.LevelDebug}))
	n := identitytest.New(t, clock.RealClock{}, log)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	n.Citadel.Fail(status.Error(codes.Unauthenticated, "no"))
	p.Renew()
	n.Eventually("a failure", func() bool { return p.Status().Failures > 0 })
	s, err := p.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("all of it", "pod", p, "status", p.Status(), "rotator", p.Rotator, "clients", p.Clients())
	text, err := json.Marshal([]any{p, p.Status(), p.Clients()})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	all := written.String() + string(text) + fmt.Sprintf("%v %+v %#v %s %+v", p, p, p, p, p.Status())
	mu.Unlock()
	scalar := der[36:68] // of the private key, in PKCS #8 of P-256
	for _, secret := range []string{"the-token-of-payroll-1", "the-agents-own-token", "PRIVATE", hex.EncodeToString(scalar), fmt.Sprint(scalar)[1:40], new(big.Int).SetBytes(scalar).String(), string(scalar)} {
		if bytes.Contains([]byte(all), []byte(secret)) {
			t.Errorf("%.20q is in a log or a string", secret)
		}
	}
	if !bytes.Contains([]byte(all), []byte("finance/payroll-1")) {
		t.Error("nothing was written at all")
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }
