package issue

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const tokenIssuer = "https://kubernetes.default.svc.cluster.local"

// subject of a token.
type grant struct {
	namespace, account, accountUID, pod, uid, node string
	audience                                       string // Citadel's, if empty
}

// grants are the tokens of the tests, by name. A test uses one as a word, which only the API server can tell, or signed.
var grants = map[string]grant{
	"payroll":         {"finance", "payroll", "a-payroll", "payroll-1", "u1", "node1", ""},
	"agent1":          {mesh.Namespace, mesh.AgentAccount, "a-bulwark-agent", "agent-a", "ua", "node1", ""},
	"agent2":          {mesh.Namespace, mesh.AgentAccount, "a-bulwark-agent", "agent-b", "ub", "node2", ""},
	"gone-agent":      {mesh.Namespace, mesh.AgentAccount, "a-bulwark-agent", "agent-c", "uc", "node1", ""},
	"nodeless-agent":  {mesh.Namespace, mesh.AgentAccount, "a-bulwark-agent", "", "", "", ""},
	"pilot":           {mesh.Namespace, mesh.PilotAccount, "a-bulwark-pilot", "pilot-1", "up", "node1", ""},
	"gone-pilot":      {mesh.Namespace, mesh.PilotAccount, "a-bulwark-pilot", "pilot-0", "up0", "node1", ""},
	"unbound-pilot":   {mesh.Namespace, mesh.PilotAccount, "a-bulwark-pilot", "", "", "", ""},
	"mixer":           {mesh.Namespace, mesh.MixerAccount, "a-bulwark-mixer", "mixer-1", "um", "node1", ""},
	"other-system":    {mesh.Namespace, "something", "a-something", "s-1", "us", "node1", ""},
	"false-agent":     {"finance", mesh.AgentAccount, "a-x", "x", "ux", "node1", ""},
	"false-pilot":     {"finance", mesh.PilotAccount, "a-x", "payroll-1", "u1", "node1", ""},
	"unbound":         {"finance", "payroll", "a-payroll", "", "", "", ""},
	"gone":            {"finance", "payroll", "a-payroll", "gone", "u-gone", "node1", ""},
	"replaced":        {"finance", "payroll", "a-payroll", "payroll-1", "u0", "node1", ""},
	"dying":           {"finance", "payroll", "a-payroll", "dying", "u-dying", "node1", ""},
	"dead":            {"finance", "payroll", "a-payroll", "dead", "u-dead", "node1", ""},
	"ended":           {"finance", "payroll", "a-payroll", "ended", "u-ended", "node1", ""},
	"changed":         {"finance", "payroll", "a-payroll", "changed", "u-changed", "node1", ""},
	"moved":           {"finance", "payroll", "a-payroll", "moved", "u-moved", "node1", ""},
	"unscheduled":     {"finance", "payroll", "a-payroll", "unscheduled", "u-unscheduled", "node1", ""},
	"earlier-account": {"finance", "payroll", "a-earlier", "payroll-1", "u1", "node1", ""},
	"other-audience":  {"finance", "payroll", "a-payroll", "payroll-1", "u1", "node1", "https://kubernetes.default.svc"},
}

// cluster is a Kubernetes with pods, service accounts and tokens.
type cluster struct {
	*fake.Clientset
	key     *ecdsa.PrivateKey
	reviews atomic.Int32
	away    atomic.Bool // the API server answers nobody
}

var errAway = errors.New("connection refused")

func pod(namespace, account, name, uid, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account}}
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	deleted := func(p *corev1.Pod, at time.Time) *corev1.Pod {
		p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: at}, []string{"x/y"}
		return p
	}
	ended := pod("finance", "payroll", "ended", "u-ended", "node1")
	ended.Status.Phase = corev1.PodFailed
	objects := []runtime.Object{
		pod("finance", "payroll", "payroll-1", "u1", "node1"), ended,
		deleted(pod("finance", "payroll", "dying", "u-dying", "node1"), start.Add(time.Minute)),
		deleted(pod("finance", "payroll", "dead", "u-dead", "node1"), start.Add(-time.Minute)),
		pod("finance", "other", "changed", "u-changed", "node1"), pod("finance", "payroll", "moved", "u-moved", "node2"),
		pod("finance", "payroll", "unscheduled", "u-unscheduled", ""),
		pod(mesh.Namespace, mesh.AgentAccount, "agent-a", "ua", "node1"), pod(mesh.Namespace, mesh.AgentAccount, "agent-b", "ub", "node2"),
		pod(mesh.Namespace, mesh.PilotAccount, "pilot-1", "up", "node1"), pod(mesh.Namespace, mesh.MixerAccount, "mixer-1", "um", "node1"),
	}
	for namespace, names := range map[string][]string{"finance": {"payroll", "other"}, mesh.Namespace: {mesh.AgentAccount, mesh.PilotAccount, mesh.MixerAccount, "something"}} {
		for _, name := range names {
			objects = append(objects, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("a-" + name)}})
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Clientset: fake.NewClientset(objects...), key: key}
	c.PrependReactor("create", "tokenreviews", c.review)
	c.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return c.away.Load(), nil, errAway
	})
	return c
}

func (c *cluster) review(a clienttesting.Action) (bool, runtime.Object, error) {
	c.reviews.Add(1)
	review := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
	if len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != mesh.CitadelAudience {
		return true, nil, errors.New("review without Citadel's audience")
	}
	if review.Spec.Token == "user" {
		review.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: []string{mesh.CitadelAudience}, User: authv1.UserInfo{Username: "system:admin"}}
		return true, review, nil
	}
	g, ok := grants[review.Spec.Token]
	if !ok {
		return true, review, nil
	}
	extra := map[string]authv1.ExtraValue{}
	for k, v := range map[string]string{"pod-name": g.pod, "pod-uid": g.uid, "node-name": g.node} {
		if v != "" {
			extra["authentication.kubernetes.io/"+k] = authv1.ExtraValue{v}
		}
	}
	review.Status = authv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{orCitadel(g.audience)},
		User: authv1.UserInfo{Username: "system:serviceaccount:" + g.namespace + ":" + g.account, UID: g.accountUID, Extra: extra},
	}
	return true, review, nil
}

func orCitadel(audience string) string {
	if audience == "" {
		return mesh.CitadelAudience
	}
	return audience
}

// claims of the token of a name, as Kubernetes has them.
func claims(name string) map[string]any {
	g := grants[name]
	k := map[string]any{"namespace": g.namespace, "serviceaccount": map[string]string{"name": g.account, "uid": g.accountUID}}
	if g.pod != "" {
		k["pod"] = map[string]string{"name": g.pod, "uid": g.uid}
	}
	if g.node != "" {
		k["node"] = map[string]string{"name": g.node, "uid": "n-" + g.node}
	}
	return map[string]any{
		"iss": tokenIssuer, "sub": "system:serviceaccount:" + g.namespace + ":" + g.account, "aud": []string{orCitadel(g.audience)},
		"exp": start.Add(time.Hour).Unix(), "iat": start.Unix(), "nbf": start.Unix(), "jti": "x", "kubernetes.io": k,
	}
}

// signed returns the token of a name, changed before it is signed.
func (c *cluster) signed(t testing.TB, name string, change ...func(map[string]any)) string {
	t.Helper()
	if _, ok := grants[name]; !ok {
		return name // as a word, for those that are none
	}
	body := claims(name)
	for _, f := range change {
		f(body)
	}
	return signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.key, KeyID: "k1"}}, body)
}

func signWith(t testing.TB, key jose.SigningKey, body any) string {
	t.Helper()
	signer, err := jose.NewSigner(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(body).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// document answers for the discovery endpoints.
func (c *cluster) document(_ context.Context, path string) ([]byte, error) {
	switch {
	case c.away.Load():
		return nil, errAway
	case path == "/.well-known/openid-configuration":
		return fmt.Appendf(nil, `{"issuer":%q}`, tokenIssuer), nil
	}
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: c.key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
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

func (l *trail) last(t *testing.T) *telemetryv1.Event {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == 0 {
		t.Fatal("no audit event")
	}
	return l.events[len(l.events)-1]
}

// fixture is a Citadel's CSR service on a cluster.
type fixture struct {
	*Service
	clock   *testclock.FakePassiveClock
	trail   *trail
	revoked *revocation.List
	keys    *Keys
	watch   *podwatch.Watch

	reviewer *Reviewer // of a live cluster
}

func newService(t testing.TB, c *cluster) fixture { return newServiceAt(t, c, start) }

func newServiceAt(t testing.TB, c *cluster, now time.Time) fixture {
	t.Helper()
	clock := testclock.NewFakePassiveClock(now)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m, err := ca.NewRoot("cluster.local", ca.P256, now, 100*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(m, clock)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := podwatch.New(c, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = watch.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := watch.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	keys := &Keys{get: c.document, clock: clock, log: log}
	if err := keys.fetch(ctx); err != nil {
		t.Fatal(err)
	}
	f := fixture{clock: clock, trail: &trail{}, revoked: &revocation.List{}, keys: keys, watch: watch}
	keeper := ca.NewKeeper(catest.State(authority, nil))
	f.Service = NewService(Config{
		Keeper: keeper,
		Authorizer: &Authorizer{
			Tokens: &Verifier{Keys: keys, Reviewer: NewReviewer(c.AuthenticationV1().TokenReviews(), clock), Clock: clock},
			Pods:   &Presence{Watch: watch, Live: c.CoreV1(), Clock: clock},
			Roots:  trustOf(keeper), TrustDomain: "cluster.local", Clock: clock,
		},
		Policy: Policy{TrustDomain: "cluster.local", TTL: time.Hour, MaxTTL: 2 * time.Hour, DNSNames: map[string][]string{mesh.PilotAccount: {"bulwark-pilot.bulwark-system.svc"}}},
		Ready:  func() error { return nil },
		Denied: func(identity, serial, podUID string) (revocation.Revocation, bool) {
			return f.revoked.Denies(identity, serial, podUID, clock.Now())
		},
		Audit: auditlog.New(f.trail, &telemetryv1.Workload{Pod: "bulwark-citadel-1"}, clock, prometheus.NewRegistry()),
		Clock: clock, Metrics: prometheus.NewRegistry(), Log: log,
	})
	return f
}

// trustOf is the bundle of a keeper.
type trust struct{ keeper *ca.Keeper }

func trustOf(k *ca.Keeper) trust { return trust{k} }

func (s trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td.Name() != "cluster.local" {
		return nil, errors.New("no bundle")
	}
	return x509bundle.FromX509Authorities(td, s.keeper.Current().Roots), nil
}

// eventually polls what a watch brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
