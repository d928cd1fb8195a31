package issue

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/ca/catest"
	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// live is a cluster with the mesh installed, whose API server makes and reviews the tokens.
type live struct {
	t         testing.TB
	client    kubernetes.Interface
	namespace string
	agents    map[string]*corev1.Pod // by node
	away      atomic.Bool            // no request gets through
	reviews   atomic.Int32
}

// cable is the client's way to the API server, which a test can cut.
type cable struct {
	*live
	next http.RoundTripper
}

func (c cable) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.away.Load() {
		return nil, errAway
	}
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		c.reviews.Add(1)
	}
	return c.next.RoundTrip(r)
}

// node returns the name of a node.
func (l *live) node() string {
	l.t.Helper()
	nodes, err := l.client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) == 0 {
		l.t.Fatalf("no nodes: %v", err)
	}
	return nodes.Items[0].Name
}

// component returns a running pod of a component.
func (l *live) component(name string) *corev1.Pod {
	l.t.Helper()
	list, err := l.client.CoreV1().Pods(mesh.Namespace).List(context.Background(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + name, FieldSelector: "status.phase=Running"})
	if err != nil || len(list.Items) == 0 {
		l.t.Fatalf("no running pod of %s: %v", name, err)
	}
	return &list.Items[0]
}

func connect(t testing.TB) *live {
	t.Helper()
	file := os.Getenv("BULWARK_TEST_KUBECONFIG")
	if file == "" {
		t.Skip("BULWARK_TEST_KUBECONFIG names no cluster with the mesh installed")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	l := &live{t: t, agents: map[string]*corev1.Pod{}}
	config.QPS, config.Burst = 1000, 1000
	config.WrapTransport = func(next http.RoundTripper) http.RoundTripper { return cable{l, next} }
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	l.client = client
	ctx := context.Background()
	agents, err := client.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=agent"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range agents.Items {
		l.agents[agents.Items[i].Spec.NodeName] = &agents.Items[i]
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "issue-test-", Labels: map[string]string{mesh.SecretsLabel: "disabled"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.namespace = ns.Name
	t.Cleanup(func() {
		l.away.Store(false)
		_ = client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{})
	})
	if _, err := client.CoreV1().ServiceAccounts(ns.Name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "payroll"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return l
}

// pod makes a pod that is bound to the node; it need not run.
func (l *live) pod(name, node string) *corev1.Pod {
	l.t.Helper()
	p, err := l.client.CoreV1().Pods(l.namespace).Create(context.Background(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "payroll", Containers: []corev1.Container{
			{Name: "c", Image: "no.such/image:1", ImagePullPolicy: corev1.PullNever}}},
	}, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

func (l *live) token(audience string, p *corev1.Pod) string {
	l.t.Helper()
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{audience}, BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}}}
	got, err := l.client.CoreV1().ServiceAccounts(p.Namespace).CreateToken(context.Background(), p.Spec.ServiceAccountName, req, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return got.Status.Token
}

// service is a CSR service on the live cluster.
func (l *live) service() fixture {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		l.t.Fatal(err)
	}
	authority, err := ca.New(m, clock.RealClock{})
	if err != nil {
		l.t.Fatal(err)
	}
	watch, err := podwatch.New(l.client, log)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = watch.Run(ctx) }()
	l.t.Cleanup(func() { cancel(); <-done })
	wait, cancelWait := context.WithTimeout(ctx, time.Minute)
	defer cancelWait()
	if err := watch.WaitSynced(wait); err != nil {
		l.t.Fatal(err)
	}
	keys := NewKeys(l.client.Discovery().RESTClient(), clock.RealClock{}, log)
	if err := keys.fetch(wait); err != nil {
		l.t.Fatal(err)
	}
	f := fixture{trail: &trail{}, keys: keys, watch: watch, reviewer: NewReviewer(l.client.AuthenticationV1().TokenReviews(), clock.RealClock{})}
	keeper := ca.NewKeeper(catest.State(authority, nil))
	f.Service = NewService(Config{
		Keeper: keeper,
		Authorizer: &Authorizer{
			Tokens: &Verifier{Keys: keys, Reviewer: f.reviewer, Clock: clock.RealClock{}},
			Pods:   &Presence{Watch: watch, Live: l.client.CoreV1(), Clock: clock.RealClock{}},
			Roots:  trustOf(keeper), TrustDomain: "cluster.local", Clock: clock.RealClock{},
		},
		Policy: Policy{TrustDomain: "cluster.local", TTL: time.Minute, MaxTTL: time.Hour},
		Ready:  func() error { return nil },
		Denied: func(string, string, string) (revocation.Revocation, bool) { return revocation.Revocation{}, false },
		Audit:  auditlog.New(f.trail, nil, clock.RealClock{}, prometheus.NewRegistry()),
		Clock:  clock.RealClock{}, Metrics: prometheus.NewRegistry(), Log: log,
	})
	return f
}

func TestTokensOfARealAPIServer(t *testing.T) {
	l := connect(t)
	s := l.service()
	if len(l.agents) < 2 {
		t.Skip("two nodes with an agent are needed")
	}
	nodes := slices.Sorted(maps.Keys(l.agents))
	here, there := nodes[0], nodes[1]
	pod := l.pod("payroll-1", here)
	token := l.token(mesh.CitadelAudience, pod)
	agentHere, agentThere := l.token(mesh.CitadelAudience, l.agents[here]), l.token(mesh.CitadelAudience, l.agents[there])
	ask := func(tokens ...string) (*securityapi.IstioCertificateResponse, error) {
		return s.CreateCertificate(as(tokens...), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	}

	before := l.reviews.Load()
	resp, err := ask(token, agentHere)
	if err != nil {
		t.Fatal(err)
	}
	if got := leafOf(t, resp).URIs[0].String(); got != "spiffe://cluster.local/ns/"+l.namespace+"/sa/payroll" {
		t.Fatalf("certificate for %s", got)
	}
	if n := l.reviews.Load() - before; n != 0 {
		t.Errorf("%d reviews of tokens whose keys are published", n)
	}
	unbound, err := l.client.CoreV1().ServiceAccounts(l.namespace).CreateToken(context.Background(), "payroll",
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{mesh.CitadelAudience}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pilot := l.token(mesh.CitadelAudience, l.component("pilot"))
	mixer := l.token(mesh.CitadelAudience, l.component("mixer"))
	foreign := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + l.namespace + "/sa/payroll"}
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	resp, err = s.CreateCertificate(as(pilot), &securityapi.IstioCertificateRequest{Csr: csrOf(t, key, x509.CertificateRequest{URIs: []*url.URL{foreign}})})
	if err != nil {
		t.Fatal(err)
	}
	if got := leafOf(t, resp).URIs[0].String(); got != "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-pilot" {
		t.Errorf("Pilot asked for a workload's identity and got %s", got)
	}
	for name, c := range map[string]struct {
		tokens []string
		code   codes.Code
	}{
		"the agent of another node":        {[]string{token, agentThere}, codes.PermissionDenied},
		"no agent":                         {[]string{token}, codes.Unauthenticated},
		"itself as the agent":              {[]string{token, token}, codes.PermissionDenied},
		"Pilot as the agent":               {[]string{token, pilot}, codes.PermissionDenied},
		"Mixer as the agent":               {[]string{token, mixer}, codes.PermissionDenied},
		"an agent without a pod's token":   {[]string{"", agentHere}, codes.Unauthenticated},
		"a token for the API server":       {[]string{l.token("https://kubernetes.default.svc.cluster.local", pod), agentHere}, codes.Unauthenticated},
		"a token for another audience":     {[]string{l.token("vault", pod), agentHere}, codes.Unauthenticated},
		"the agent's for another audience": {[]string{token, l.token("vault", l.agents[here])}, codes.Unauthenticated},
		"a token bound to no pod":          {[]string{unbound.Status.Token, agentHere}, codes.PermissionDenied},
		"a token whose signature is cut":   {[]string{token[:len(token)-4], agentHere}, codes.Unauthenticated},
		"a word":                           {[]string{"word", agentHere}, codes.Unauthenticated},
	} {
		if _, err := ask(c.tokens...); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}

	grace := int64(0)
	if err := l.client.CoreV1().Pods(l.namespace).Delete(context.Background(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "the token of a deleted pod is refused", func() bool {
		_, err := ask(token, agentHere)
		return status.Code(err) == codes.PermissionDenied
	})
	if took := time.Since(began); took > time.Second {
		t.Errorf("refused only %s after the deletion", took.Round(time.Millisecond))
	}
	again := l.pod("payroll-1", here)
	if _, err = ask(token, agentHere); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the token of a pod whose name another has now: %v", err)
	}
	if _, err = ask(l.token(mesh.CitadelAudience, again), agentHere); err != nil {
		t.Errorf("the new pod: %v", err)
	}
}

// The API server is the judge of its own tokens; offline verification has to come to the same verdicts.
func TestOfflineVerificationAgreesWithARealAPIServer(t *testing.T) {
	l := connect(t)
	s := l.service()
	ctx := context.Background()
	pod := l.pod("payroll-1", l.node())
	unbound, err := l.client.CoreV1().ServiceAccounts(l.namespace).CreateToken(ctx, "payroll", &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{mesh.CitadelAudience}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good := l.token(mesh.CitadelAudience, pod)
	for name, token := range map[string]string{
		"a pod's token":            good,
		"of no pod":                unbound.Status.Token,
		"for another audience":     l.token("vault", pod),
		"with a cut signature":     good[:len(good)-4],
		"with another payload":     strings.Split(good, ".")[0] + "." + strings.Split(unbound.Status.Token, ".")[1] + "." + strings.Split(good, ".")[2],
		"with a signature swapped": good[:strings.LastIndex(good, ".")] + unbound.Status.Token[strings.LastIndex(unbound.Status.Token, "."):],
	} {
		before := l.reviews.Load()
		offline, offlineErr := s.Authorizer.Tokens.Verify(ctx, token)
		if n := l.reviews.Load() - before; n != 0 {
			t.Errorf("%s: %d reviews", name, n)
		}
		reviewed, reviewErr := s.Authorizer.Tokens.Reviewer.Review(ctx, token)
		if status.Code(offlineErr) != status.Code(reviewErr) || offline != reviewed {
			t.Errorf("%s: offline %+v, %v; the API server %+v, %v", name, offline, offlineErr, reviewed, reviewErr)
		}
	}
}

// What was seen goes on without the API server; what was not seen gets nothing.
func TestRealAPIServerAway(t *testing.T) {
	l := connect(t)
	s := l.service()
	ctx := context.Background()
	here := l.node()
	seen := l.pod("payroll-1", here)
	eventually(t, "the pod is seen", func() bool { p, ok := s.watch.ByUID(string(seen.UID)); return ok && p.Node == here })
	token := l.token(mesh.CitadelAudience, seen)
	l.away.Store(true)
	caller, err := s.Authorizer.Tokens.Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Authorizer.Pods.Check(ctx, caller); err != nil {
		t.Errorf("a pod that was seen: %v", err)
	}
	blind := &Presence{Watch: emptyWatch(t), Live: l.client.CoreV1(), Clock: clock.RealClock{}}
	if err := blind.Check(ctx, caller); status.Code(err) != codes.Unavailable {
		t.Errorf("a pod that was not seen: %v", err)
	}
	if _, err := s.Authorizer.Tokens.Verify(ctx, "word"); status.Code(err) != codes.Unavailable {
		t.Errorf("a token that only the API server can tell: %v", err)
	}
	if _, err := s.Authorizer.Tokens.Verify(ctx, token[:len(token)-4]); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token whose signature is cut: %v", err)
	}
}

// emptyWatch has seen no pod.
func emptyWatch(t *testing.T) *podwatch.Watch {
	t.Helper()
	w, err := podwatch.New(fake.NewClientset(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return w
}
