package run

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func report(pods []*identity.Identity, sequence uint64, signer []byte) *identityv1.Holding {
	h := &identityv1.Holding{Sequence: sequence, ProxiesSequence: sequence, Issuers: map[string]uint32{}}
	addPods(h, pods, signer, time.Now())
	return h
}

// An agent that has just started does not know what the proxies hold which an earlier one served.
func TestRestoredPodHoldsTheWorstUntilItsClientIsBack(t *testing.T) {
	clk := testclock.NewFakeClock(time.Now())
	n := identitytest.New(t, clk, identitytest.Quiet)
	signer := n.CA.Cert.SubjectKeyId
	p, idle := n.Pod("finance", "restored", "payroll"), n.Pod("finance", "without-proxy", "payroll")
	pods := []*identity.Identity{p, idle}
	worst := func() bool {
		h := report(pods, 5, signer)
		return h.ProxiesSequence == 0 && h.Issuers["unknown"] > 0
	}
	p.Restored()
	idle.Restored()
	if !worst() {
		t.Fatal("a pod without an SVID of this agent is believed to hold nothing old")
	}
	n.Ready(p)
	n.Ready(idle)
	if !worst() {
		t.Fatal("a pod whose proxy is not back is believed to hold nothing old")
	}
	held := identity.Held{Trusts: true, Sequence: 5, Issuers: []string{hex.EncodeToString(signer)}}
	own := p.Connect(identity.ByFiles)
	defer own.Close()
	own.Holds(held)
	if !p.Unknown() {
		t.Fatal("the agent's own writing of files is taken for the return of a proxy")
	}
	c := p.Connect(identity.BySocket)
	defer c.Close()
	c.Holds(held)
	if p.Unknown() {
		t.Fatal("the proxy is back, and still believed to hold something old")
	}
	if !worst() {
		t.Fatal("the pod without a proxy has not had the time to come back")
	}
	clk.Step(time.Minute)
	if h := report(pods, 5, signer); h.ProxiesSequence != 5 || h.Issuers["unknown"] > 0 || len(h.Behind) > 0 {
		t.Fatalf("%v", h)
	}
}

func TestReportSaysWhatPodsReallyHold(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	old := hex.EncodeToString(n.CA.Cert.SubjectKeyId)
	var pods []*identity.Identity
	for _, name := range []string{"idle", "current", "old-bundle", "old-certificate"} {
		p := n.Pod("finance", name, "payroll")
		n.Ready(p)
		pods = append(pods, p)
	}
	hold := func(i int, sequence uint64, issuers ...string) {
		c := pods[i].Connect(identity.BySocket)
		t.Cleanup(c.Close)
		c.Holds(identity.Held{Trusts: true, Sequence: sequence, Issuers: issuers})
	}
	// A pod without a client holds no bundle; its certificate counts all the same.
	if h := report(pods, 5, n.CA.Cert.SubjectKeyId); h.Proxies != 0 || h.ProxiesSequence != 5 || h.Issuers[old] != 4 || len(h.Issuers) != 1 || len(h.Behind) > 0 {
		t.Fatalf("%v", h)
	}
	hold(1, 5, old)
	hold(2, 3, old)
	hold(3, 5, "aa")
	h := report(pods, 5, n.CA.Cert.SubjectKeyId)
	if h.Proxies != 3 || h.ProxiesSequence != 3 || h.Issuers[old] != 4 || h.Issuers["aa"] != 1 || !slices.Equal(h.Behind, []string{"finance/old-bundle", "finance/old-certificate"}) {
		t.Fatalf("%v", h)
	}
	// Another key signs: everyone is behind until renewed.
	if h := report(pods, 5, svidtest.New(t, "cluster.local").Cert.SubjectKeyId); len(h.Behind) != 4 {
		t.Fatalf("%v", h)
	}
	var many []*identity.Identity
	for range 30 {
		many = append(many, pods[2])
	}
	if h := report(many, 5, nil); len(h.Behind) != maxBehind {
		t.Fatalf("%d names", len(h.Behind))
	}
}

func TestEndedCertificatesDoNotKeepARoot(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "p", "payroll")
	n.Ready(p)
	h := &identityv1.Holding{Issuers: map[string]uint32{}}
	addPods(h, []*identity.Identity{p}, nil, time.Now().Add(2*time.Hour))
	if len(h.Issuers) > 0 {
		t.Fatalf("%v", h)
	}
}

func TestWorkloadsForTheOperatorHaveNoKey(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	c := p.Connect(identity.ByFiles)
	defer c.Close()
	c.Holds(identity.Held{Trusts: true, Sequence: 7})
	n.Citadel.Fail(status.Error(codes.Unauthenticated, "no"))
	p.Renew()
	n.Eventually("a failure", func() bool { return p.Status().Failures > 0 })
	b, err := json.Marshal(workloads([]*identity.Identity{p}))
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil || len(got) != 1 {
		t.Fatalf("%s, %v", b, err)
	}
	for name, want := range map[string]any{
		"namespace": "finance", "pod": "payroll-1", "serviceAccount": "payroll", "identity": p.ID.String(), "state": "due",
		"issuerKeyID": hex.EncodeToString(n.CA.Cert.SubjectKeyId), "bundleSequence": 7.0,
	} {
		if got[0][name] != want {
			t.Errorf("%s is %v, want %v", name, got[0][name], want)
		}
	}
	for _, name := range []string{"since", "nextRenewal", "failures", "lastError", "notAfter", "notBefore", "serial", "issuer", "uid", "delivery"} {
		if got[0][name] == nil {
			t.Errorf("no %s", name)
		}
	}
	for _, secret := range secretsOf(t, p) {
		if strings.Contains(string(b), secret) {
			t.Errorf("%.20q is in %s", secret, b)
		}
	}
}

func TestDetailOfAPodHasItsCertificatesAndNoKey(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	d, err := detailOf([]*identity.Identity{p}, p.Facts.UID)
	if err != nil || d.Pod != "payroll-1" || len(d.Chain) != len(p.Status().Certificates) {
		t.Fatalf("%+v, %v", d, err)
	}
	block, _ := pem.Decode([]byte(d.Chain[0]))
	if block == nil || !bytes.Equal(block.Bytes, p.Status().Certificates[0].Raw) {
		t.Fatalf("chain begins with %s", d.Chain[0])
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range secretsOf(t, p) {
		if strings.Contains(string(b), secret) {
			t.Errorf("%.20q is in %s", secret, b)
		}
	}
	if _, err := detailOf([]*identity.Identity{p}, "another"); err == nil {
		t.Error("a detail of a pod that is not there")
	}
}

func secretsOf(t *testing.T, p *identity.Identity) []string {
	t.Helper()
	s, err := p.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	scalar := der[36:68] // the private key itself, in PKCS #8 of P-256
	return []string{"the-token-of-payroll-1", "the-agents-own-token", "PRIVATE", hex.EncodeToString(scalar), new(big.Int).SetBytes(scalar).String(), string(scalar)}
}

func TestMetricsOfIdentities(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	n.Citadel.Fail(status.Error(codes.PermissionDenied, "no"))
	p.Renew()
	n.Eventually("a failure", func() bool { return p.Status().Failures > 0 })
	lone, err := n.Issuer.New(identity.Facts{Namespace: "finance", Pod: "lone", UID: "lone", ServiceAccount: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	n.Run(lone.Run)
	n.Eventually("another failure", func() bool { return lone.Status().Failures > 0 })
	registry := prometheus.NewRegistry()
	n.Issuer.Metrics.Register(registry)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range families {
		text += f.String()
	}
	for _, code := range []string{"PermissionDenied", "NoToken"} {
		if !strings.Contains(text, code) {
			t.Errorf("no failure %s in %s", code, text)
		}
	}
	for _, secret := range secretsOf(t, p) {
		if strings.Contains(text, secret) {
			t.Errorf("%.20q is in a metric", secret)
		}
	}
	end := p.Status().Certificates[0].NotAfter
	if got := firstEnd([]svid.Status{{}, p.Status(), lone.Status()}); got != float64(end.Unix()) {
		t.Errorf("survives until %v, want %v", got, end.Unix())
	}
	if got := firstEnd(nil); !math.IsInf(got, 1) {
		t.Errorf("without certificates: %v", got)
	}
}
