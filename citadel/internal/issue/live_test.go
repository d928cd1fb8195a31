package issue

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
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
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// live is a cluster with the mesh installed, whose API server makes and reviews the tokens.
type live struct {
	t         *testing.T
	client    kubernetes.Interface
	namespace string
	agents    map[string]*corev1.Pod // by node
}

func connect(t *testing.T) *live {
	t.Helper()
	file := os.Getenv("BULWARK_TEST_KUBECONFIG")
	if file == "" {
		t.Skip("BULWARK_TEST_KUBECONFIG names no cluster with the mesh installed")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	l := &live{t: t, client: client, agents: map[string]*corev1.Pod{}}
	agents, err := client.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=agent"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range agents.Items {
		l.agents[agents.Items[i].Spec.NodeName] = &agents.Items[i]
	}
	if len(l.agents) < 2 {
		t.Skip("two nodes with an agent are needed")
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "issue-test-", Labels: map[string]string{mesh.SecretsLabel: "disabled"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.namespace = ns.Name
	t.Cleanup(func() { _ = client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}) })
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

func TestTokensOfARealAPIServer(t *testing.T) {
	l := connect(t)
	m, err := ca.NewRoot("cluster.local", ca.P256, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(m, clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	s := NewService(ca.NewKeeper(ca.NewState(authority, nil)), &Authorizer{Reviewer: NewReviewer(l.client.AuthenticationV1().TokenReviews(), clock.RealClock{}), Pods: l.client.CoreV1()},
		Policy{TrustDomain: "cluster.local", TTL: time.Minute, MaxTTL: time.Hour}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	var nodes []string
	for node := range l.agents {
		nodes = append(nodes, node)
	}
	here, there := nodes[0], nodes[1]
	pod := l.pod("payroll-1", here)
	token := l.token(mesh.CitadelAudience, pod)
	agentHere, agentThere := l.token(mesh.CitadelAudience, l.agents[here]), l.token(mesh.CitadelAudience, l.agents[there])
	ask := func(tokens ...string) (*securityapi.IstioCertificateResponse, error) {
		return s.CreateCertificate(as(tokens...), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	}

	resp, err := ask(token, agentHere)
	if err != nil {
		t.Fatal(err)
	}
	if got := leafOf(t, resp).URIs[0].String(); got != "spiffe://cluster.local/ns/"+l.namespace+"/sa/payroll" {
		t.Fatalf("certificate for %s", got)
	}
	unbound, err := l.client.CoreV1().ServiceAccounts(l.namespace).CreateToken(context.Background(), "payroll",
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{mesh.CitadelAudience}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		tokens []string
		code   codes.Code
	}{
		"the agent of another node":        {[]string{token, agentThere}, codes.PermissionDenied},
		"no agent":                         {[]string{token}, codes.Unauthenticated},
		"itself as the agent":              {[]string{token, token}, codes.PermissionDenied},
		"a token for the API server":       {[]string{l.token("https://kubernetes.default.svc.cluster.local", pod), agentHere}, codes.Unauthenticated},
		"a token for another audience":     {[]string{l.token("vault", pod), agentHere}, codes.Unauthenticated},
		"the agent's for another audience": {[]string{token, l.token("vault", l.agents[here])}, codes.Unauthenticated},
		"a token bound to no pod":          {[]string{unbound.Status.Token, agentHere}, codes.PermissionDenied},
		"a token whose signature is cut":   {[]string{token[:len(token)-4], agentHere}, codes.Unauthenticated},
	} {
		if _, err := ask(c.tokens...); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}

	grace := int64(0)
	if err := l.client.CoreV1().Pods(l.namespace).Delete(context.Background(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	_, err = ask(token, agentHere) // the review of this token is still remembered
	if status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the pod was deleted: %v", err)
	}
	again := l.pod("payroll-1", here)
	if _, err = ask(token, agentHere); err == nil || strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("the token of a pod whose name another has now: %v", err)
	}
	if _, err = ask(l.token(mesh.CitadelAudience, again), agentHere); err != nil {
		t.Errorf("the new pod: %v", err)
	}
}
