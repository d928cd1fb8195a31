package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// impostor asks Citadel for what is not its own. It has the tokens of real pods, from the API server.
type impostor struct {
	bareScene
	address  string // of Citadel's CSR service
	bundle   *x509bundle.Bundle
	citadel  spiffe.ID
	request  *svid.Requester
	victim   *corev1.Pod
	ours     *corev1.Pod // the agent of the victim's node
	others   *corev1.Pod // and that of another
	stop     func()
	attempts int
}

func newImpostor(ctx context.Context, s bareScene) (*impostor, error) {
	i := &impostor{bareScene: s}
	bundle, err := trustBundle(ctx)
	if err != nil {
		return nil, err
	}
	i.bundle = bundle.X509Bundle()
	if i.citadel, err = spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.CitadelAccount); err != nil {
		return nil, err
	}
	if i.victim, err = s.Pod(ctx, s.Namespace, "server"); err != nil {
		return nil, err
	}
	agents, err := s.Component(ctx, "agent")
	if err != nil {
		return nil, err
	}
	for _, agent := range agents {
		if agent.Spec.NodeName == i.victim.Spec.NodeName {
			i.ours = &agent
		} else {
			i.others = &agent
		}
	}
	if i.ours == nil || i.others == nil {
		return nil, fmt.Errorf("%d agents; one on the victim's node and one on another are needed", len(agents))
	}
	citadels, err := s.Component(ctx, "citadel")
	if err != nil {
		return nil, err
	}
	if i.address, i.stop, err = s.Forward(ctx, &citadels[0], mesh.CSRPort); err != nil {
		return nil, err
	}
	i.request, err = svid.NewRequester(i.address, mesh.DefaultTrustDomain, i.bundle)
	return i, err
}

// token has the API server make a token of the pod's account, bound to the pod.
func (i *impostor) token(ctx context.Context, pod *corev1.Pod, audience string) (string, error) {
	return i.tokenBoundTo(ctx, pod, audience, &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
}

func (i *impostor) tokenBoundTo(ctx context.Context, pod *corev1.Pod, audience string, bound *authenticationv1.BoundObjectReference) (string, error) {
	seconds := int64(600) // the least that Kubernetes gives
	got, err := i.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds, BoundObjectRef: bound}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return got.Status.Token, nil
}

// asks requests a certificate by two tokens.
func (i *impostor) asks(ctx context.Context, workload, agent string) (*x509svid.SVID, error) {
	i.attempts++
	return i.request.Request(ctx, svid.Tokens{Workload: workload, Agent: agent}, 0, time.Now())
}

// refused is nil if an attempt ended with the code.
func refused(what string, want codes.Code, got *x509svid.SVID, err error) error {
	if err == nil {
		return fmt.Errorf("%s: got a certificate of %s", what, got.ID)
	}
	if code := status.Code(err); code != want {
		return fmt.Errorf("%s: refused with %s (%v), want %s", what, code, err, want)
	}
	return nil
}

func nobodyGetsTheIdentityOfAnother(ctx context.Context, s bareScene) (string, error) {
	i, err := newImpostor(ctx, s)
	if err != nil {
		return "", err
	}
	defer i.stop()
	defer i.request.Close()
	for _, try := range []func(context.Context) error{i.withTokens, i.afterDeletion, i.withForeignNames, i.withCertificates, i.withoutTLS} {
		if err := try(ctx); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d attempts by token and certificate, none gave another's identity", i.attempts), nil
}

// withTokens presents every wrong pair of real tokens.
func (i *impostor) withTokens(ctx context.Context) error {
	pilots, err := i.Component(ctx, "pilot")
	if err != nil {
		return err
	}
	mixers, err := i.Component(ctx, "mixer")
	if err != nil {
		return err
	}
	tokens := map[string]string{}
	for name, of := range map[string]struct {
		pod      *corev1.Pod
		audience string
	}{
		"victim": {i.victim, mesh.CitadelAudience}, "ours": {i.ours, mesh.CitadelAudience}, "others": {i.others, mesh.CitadelAudience},
		"pilot": {&pilots[0], mesh.CitadelAudience}, "mixer": {&mixers[0], mesh.CitadelAudience},
		"of another audience": {i.victim, "someone.else"}, "ours of another audience": {i.ours, mesh.OperatorAudience},
	} {
		if tokens[name], err = i.token(ctx, of.pod, of.audience); err != nil {
			return err
		}
	}
	if tokens["bound to no pod"], err = i.tokenBoundTo(ctx, i.victim, mesh.CitadelAudience, nil); err != nil {
		return err
	}
	tokens["forged"], tokens["unsigned"] = forge(tokens["ours"], "bulwark-agent", "server"), unsigned(tokens["victim"])
	got, err := i.asks(ctx, tokens["victim"], tokens["ours"])
	if err != nil || got.ID.String() != i.id("server") { // else nothing below would mean anything
		return fmt.Errorf("the right pair of tokens gave no certificate of the victim: %v", err)
	}
	for _, c := range []struct {
		workload, agent string
		want            codes.Code
	}{
		{"of another audience", "ours", codes.Unauthenticated},
		{"victim", "ours of another audience", codes.Unauthenticated},
		{"victim", "", codes.Unauthenticated},
		{"victim", "others", codes.PermissionDenied},
		{"victim", "victim", codes.PermissionDenied},
		{"victim", "pilot", codes.PermissionDenied},
		{"victim", "mixer", codes.PermissionDenied},
		{"bound to no pod", "ours", codes.PermissionDenied}, // an agent that asks for an account without a pod on its node
		{"forged", "ours", codes.Unauthenticated},
		{"unsigned", "ours", codes.Unauthenticated},
	} {
		got, err := i.asks(ctx, tokens[c.workload], tokens[c.agent])
		if err := refused(fmt.Sprintf("token %q with the agent's token %q", c.workload, c.agent), c.want, got, err); err != nil {
			return err
		}
	}
	// Whose token it is decides, not what is asked for.
	for name, account := range map[string]string{"pilot": mesh.PilotAccount, "mixer": mesh.MixerAccount} {
		got, err := i.asks(ctx, tokens[name], "")
		if err != nil {
			return err
		}
		if want := (spiffe.ID{TrustDomain: mesh.DefaultTrustDomain, Namespace: mesh.Namespace, ServiceAccount: account}); got.ID.String() != want.String() {
			return fmt.Errorf("the token of %s gave a certificate of %s", name, got.ID)
		}
	}
	return nil
}

// forge changes the claims of a token and keeps its signature.
func forge(token, from, to string) string {
	parts := strings.Split(token, ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "not a token"
	}
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(string(claims), from, to)))
	return strings.Join(parts, ".")
}

// unsigned is a token that says it needs no signature.
func unsigned(token string) string {
	parts := strings.Split(token, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
}

// afterDeletion presents a token of a pod that was there when it was made.
func (i *impostor) afterDeletion(ctx context.Context) error {
	pods := i.CoreV1().Pods(i.Namespace)
	no := false
	doomed, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "doomed"},
		Spec: corev1.PodSpec{ServiceAccountName: "server", NodeName: i.victim.Spec.NodeName, AutomountServiceAccountToken: &no,
			Containers: []corev1.Container{{Name: "client", Image: "docker.io/bulwark/sample:" + i.Tag, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"wait"}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	mine, err := i.token(ctx, doomed, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	agent, err := i.token(ctx, i.ours, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	if _, err := i.asks(ctx, mine, agent); err != nil {
		return fmt.Errorf("while the pod was there: %w", err)
	}
	if err := pods.Delete(ctx, doomed.Name, *metav1.NewDeleteOptions(0)); err != nil {
		return err
	}
	return lab.PollFor(ctx, 5*time.Second, func(ctx context.Context) error {
		got, err := i.asks(ctx, mine, agent)
		return refused("token of a deleted pod", codes.PermissionDenied, got, err)
	})
}

// withForeignNames puts the names of others into the CSR.
func (i *impostor) withForeignNames(ctx context.Context) error {
	workload, err := i.token(ctx, i.victim, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	agent, err := i.token(ctx, i.ours, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: mesh.PilotAccount, Organization: []string{"system:masters"}},
		URIs:     []*url.URL{{Scheme: "spiffe", Host: mesh.DefaultTrustDomain, Path: "/ns/" + mesh.Namespace + "/sa/" + mesh.PilotAccount}},
		DNSNames: []string{mesh.ServiceHost(mesh.PilotAccount)}, IPAddresses: []net.IP{net.IPv4(10, 96, 0, 1)},
	}, key)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(i.address, mtls.DialOptions(mtls.ClientWithoutCert(i.bundle, mtls.OneOf(i.citadel)))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	i.attempts++
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+workload, mesh.AgentTokenHeader, "Bearer "+agent)
	answer, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), ValidityDuration: 1 << 40})
	if err != nil {
		return fmt.Errorf("a CSR with foreign names: %w", err)
	}
	block, _ := pem.Decode([]byte(answer.GetCertChain()[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != i.id("server") || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 ||
		leaf.Subject.CommonName != "" || leaf.IsCA || time.Until(leaf.NotAfter) > 2*time.Minute {
		return fmt.Errorf("a CSR with foreign names and a long life gave %v, %v, %v, subject %q, until %s", leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.Subject, leaf.NotAfter)
	}
	return nil
}

// withCertificates presents a workload's certificate: it renews itself and is no component's.
func (i *impostor) withCertificates(ctx context.Context) error {
	workload, err := i.token(ctx, i.victim, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	agent, err := i.token(ctx, i.ours, mesh.CitadelAudience)
	if err != nil {
		return err
	}
	own, err := i.asks(ctx, workload, agent)
	if err != nil {
		return err
	}
	i.attempts += 3
	renewed, err := i.request.Renew(ctx, own, 0, time.Now())
	if err != nil || renewed.ID != own.ID {
		return fmt.Errorf("a certificate did not renew itself: %v", err)
	}
	if code, err := i.watches(ctx, mtls.Client(own, i.bundle, mtls.OneOf(i.citadel))); code != codes.PermissionDenied {
		return fmt.Errorf("a workload that watches the components' trust bundle: %s (%v), want PermissionDenied", code, err)
	}
	if code, err := i.watches(ctx, mtls.ClientWithoutCert(i.bundle, mtls.OneOf(i.citadel))); code != codes.Unauthenticated {
		return fmt.Errorf("someone without a certificate who watches it: %s (%v), want Unauthenticated", code, err)
	}
	return nil
}

// watches calls TrustBundles and returns the code of the first answer.
func (i *impostor) watches(ctx context.Context, config *tls.Config) (codes.Code, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(i.address, mtls.DialOptions(config)...)
	if err != nil {
		return codes.Unknown, err
	}
	defer conn.Close()
	stream, err := identityv1.NewTrustBundlesClient(conn).Watch(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	return status.Code(err), err
}

// withoutTLS speaks plaintext and TLS 1.2 to every port on which the control plane serves its own.
func (i *impostor) withoutTLS(ctx context.Context) error {
	for _, target := range []struct {
		component string
		port      int
	}{{"citadel", mesh.CSRPort}, {"citadel", mesh.BundlePort}, {"pilot", mesh.XDSPort}, {"mixer", mesh.TelemetryPort}} {
		pods, err := i.Component(ctx, target.component)
		if err != nil {
			return err
		}
		address, stop, err := i.Forward(ctx, &pods[0], target.port)
		if err != nil {
			return err
		}
		err = errors.Join(plaintext(ctx, address), oldTLS(ctx, address))
		stop()
		if err != nil {
			return fmt.Errorf("port %d of %s: %w", target.port, target.component, err)
		}
	}
	return nil
}

// plaintext is an error if a server answers HTTP/1.1 or HTTP/2 in clear with anything but a refusal.
func plaintext(ctx context.Context, address string) error {
	for _, opening := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "GET / HTTP/1.1\r\nHost: citadel\r\n\r\n"} {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, opening) // that it is not taken is the point
		answer, err := io.ReadAll(io.LimitReader(conn, 4096))
		_ = conn.Close()
		alert, badRequest := len(answer) > 0 && answer[0] == 21, strings.HasPrefix(string(answer), "HTTP/1.0 400 ")
		if !alert && !badRequest && (len(answer) > 0 || errors.Is(err, context.DeadlineExceeded)) {
			return fmt.Errorf("plaintext was answered with %q, %v", answer, err)
		}
	}
	return nil
}

func oldTLS(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}} //nolint:gosec // an attacker
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		return errors.Join(errors.New("TLS 1.2 was spoken"), conn.Close())
	}
	if !strings.Contains(err.Error(), "protocol version") {
		return fmt.Errorf("TLS 1.2 failed for another reason: %w", err)
	}
	return nil
}
