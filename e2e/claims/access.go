package claims

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// OnlyTheAuditorMayRead is claim 2.
func OnlyTheAuditorMayRead(ctx context.Context, s *Scene) (string, error) {
	requests := []struct {
		account, method, path string
		want                  int
	}{
		{"account-auditor", "GET", "/accounts/42", 200},
		{"account-auditor", "POST", "/accounts/42", 403},
		{"account-auditor", "GET", "/salaries", 403},
		{"web", "GET", "/accounts/42", 403},
	}
	tried := 0
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, r := range requests {
			flags := []string{"--method=" + r.method}
			if protocol == "HTTP/2.0" {
				flags = append(flags, "--http2")
			}
			got, err := s.Get(ctx, r.account, s.URL(r.path), flags...)
			if err != nil {
				return "", err
			}
			if got.Status != r.want || got.Proto != protocol {
				return "", fmt.Errorf("%s %s %s as %s: %+v, want %d", protocol, r.method, r.path, r.account, got, r.want)
			}
			if r.want == 200 && (got.Answer == nil || got.Answer.Server != "payroll" || got.Answer.Proto != protocol) {
				return "", fmt.Errorf("%s %s as %s was answered by %+v", r.method, r.path, r.account, got.Answer)
			}
			tried++
		}
	}
	for account, allowed := range map[string]bool{"account-auditor": true, "web": false} {
		got, err := lab.ExecJSON[sample.TCPResult](ctx, s.Lab, s.Namespace, account, "client", "sample", "tcp", "payroll."+s.Namespace+":9000")
		if err != nil {
			return "", err
		}
		if (got.Answer == "payroll: balance?\n") != allowed || (got.Error == "") != allowed {
			return "", fmt.Errorf("TCP ledger as %s: %+v, want allowed=%t", account, got, allowed)
		}
		tried++
	}
	for account, want := range map[string]string{"account-auditor": "OK", "web": "PermissionDenied"} {
		got, err := lab.ExecJSON[sample.RPCResult](ctx, s.Lab, s.Namespace, account, "client", "sample", "rpc", "payroll."+s.Namespace+":7000")
		if err != nil {
			return "", err
		}
		if got.Code != want || got.Serving != (want == "OK") {
			return "", fmt.Errorf("gRPC call as %s: %+v, want %s", account, got, want)
		}
		tried++
	}
	return fmt.Sprintf("%d requests, each with the verdict that the policy says", tried), nil
}

// enforce is the label by which a namespace refuses pods with privileges.
const enforce = "pod-security.kubernetes.io/enforce"

// tap adds an eavesdropper to a pod. It needs NET_RAW, which the namespace does not let anybody have: whoever listens there has to
// be who may change that, too.
func (s *Scene) tap(ctx context.Context, pod *corev1.Pod) error {
	namespace, err := s.CoreV1().Namespaces().Get(ctx, s.Namespace, metav1.GetOptions{})
	if err != nil {
		return err
	}
	set := func(ctx context.Context, level string) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, enforce, level)
		_, err := s.CoreV1().Namespaces().Patch(ctx, s.Namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	if level := namespace.Labels[enforce]; level != "" {
		if err := set(ctx, "privileged"); err != nil {
			return err
		}
		defer func() { _ = set(context.WithoutCancel(ctx), level) }()
	}
	return lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error { // until the API server has seen the label
		_, err := s.CoreV1().Pods(s.Namespace).UpdateEphemeralContainers(ctx, pod.Name, pod, metav1.UpdateOptions{})
		return err
	})
}

// TheWireIsTLS13 is claim 3.
func TheWireIsTLS13(ctx context.Context, s *Scene) (string, error) {
	pod, err := s.Pod(ctx, s.Namespace, "payroll")
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("tap-%d", time.Now().UnixNano())
	no := false
	pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: "docker.io/bulwark/sample:" + s.Tag, ImagePullPolicy: corev1.PullIfNotPresent,
		Args: []string{"capture", "--port=8080", "--duration=4s", "--needle=/accounts/,account-auditor,HTTP/1.1"},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64), RunAsNonRoot: &no,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
		},
	}})
	if err := s.tap(ctx, pod); err != nil {
		return "", fmt.Errorf("putting a tap into payroll's pod: %w", err)
	}
	status := func(ctx context.Context) (*corev1.ContainerState, error) {
		pod, err := s.CoreV1().Pods(s.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		for _, c := range pod.Status.EphemeralContainerStatuses {
			if c.Name == name {
				return &c.State, nil
			}
		}
		return nil, errors.New("the tap has not started")
	}
	err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		state, err := status(ctx)
		if err == nil && state.Running == nil && state.Terminated == nil {
			err = errors.New("the tap is not running")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	began := time.Now()
	// Many at a time, so that the proxies open connections and do not only use those they have.
	load, err := lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client",
		"sample", "load", s.URL("/accounts/42"), "--duration=3s", "--workers=24")
	if err != nil {
		return "", err
	}
	if load.Outcomes["200"] == 0 {
		return "", fmt.Errorf("no request succeeded while the tap listened: %v", load.Outcomes)
	}
	err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		state, err := status(ctx)
		if err == nil && state.Terminated == nil {
			err = errors.New("the tap still runs")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	seen, err := lab.LogJSON[sample.CaptureResult](ctx, s.Lab, s.Namespace, pod.Name, name)
	if err != nil {
		return "", err
	}
	hellos := seen.ServerHellos["TLS 1.3"]
	if hellos == 0 || len(seen.ServerHellos) != 1 || seen.AppData == 0 {
		return "", fmt.Errorf("captured %+v, want handshakes of TLS 1.3 only, and encrypted data", seen)
	}
	for needle, n := range seen.Found {
		if n > 0 {
			return "", fmt.Errorf("%q was readable %d times in %d bytes", needle, n, seen.Bytes)
		}
	}
	// TLS 1.3 encrypts the certificates too: that both were there is what the server's proxy says of the connection.
	err = s.Audited(ctx, began, "destination", func(e *Event) bool {
		return e.SourceIdentity == s.ID("account-auditor") && e.DestinationIdentity == s.ID("payroll") && e.TlsVersion == "TLSv1.3"
	})
	if err != nil {
		return "", fmt.Errorf("audit event with both identities and TLS 1.3: %w", err)
	}
	return fmt.Sprintf("%d bytes, %d TLS 1.3 handshakes, path nowhere in clear", seen.Bytes, hellos), nil
}

// StrangersAreRefused is claim 4.
func StrangersAreRefused(ctx context.Context, s *Scene) (string, error) {
	pod, err := s.Pod(ctx, s.Namespace, "payroll")
	if err != nil {
		return "", err
	}
	began := time.Now()
	plain, err := lab.ExecJSON[sample.Response](ctx, s.Lab, s.Outside, "stranger", "client", "sample", "get", s.URL("/accounts/42"))
	if err != nil {
		return "", err
	}
	if plain.Error == "" {
		return "", fmt.Errorf("plaintext was answered: %+v", plain)
	}
	address := pod.Status.PodIP + ":8080"
	for what, flags := range map[string][]string{
		"a client without a certificate":            nil,
		"a client with a certificate of its own CA": {"--forge=" + s.ID("account-auditor")},
	} {
		got, err := lab.ExecJSON[sample.TLSResult](ctx, s.Lab, s.Outside, "stranger", "client", append([]string{"sample", "tls", address}, flags...)...)
		if err != nil {
			return "", err
		}
		if !got.Refused || got.Server != s.ID("payroll") {
			return "", fmt.Errorf("%s: %+v, want a refusal by payroll", what, got)
		}
	}
	control, err := s.Get(ctx, "account-auditor", s.URL("/accounts/42"))
	if err != nil {
		return "", err
	}
	if control.Status != 200 {
		return "", fmt.Errorf("meanwhile the auditor got %+v", control)
	}
	stranger, err := s.Pod(ctx, s.Outside, "stranger")
	if err != nil {
		return "", err
	}
	refused := 0
	err = lab.PollFor(ctx, auditLimit, func(ctx context.Context) error {
		events, err := s.events(ctx, began)
		if err != nil {
			return err
		}
		refused = 0
		for _, e := range events {
			if e.Verdict == "VERDICT_REFUSED" && e.Reporter == "REPORTER_DESTINATION" && host(e.SourceAddress) == stranger.Status.PodIP {
				refused++
			}
		}
		if refused < 3 {
			return fmt.Errorf("%d refusals in the audit trail, want 3", refused)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return "all three refused, and audited with their address", nil
}

// AnImpostorIsRefused is claim 5.
func AnImpostorIsRefused(ctx context.Context, s *Scene) (string, error) {
	if err := s.Apply(ctx, s.Local(impostor)); err != nil {
		return "", err
	}
	if err := s.Ready(ctx, s.Namespace, readyLimit); err != nil {
		return "", err
	}
	pod, err := s.Pod(ctx, s.Namespace, "impostor")
	if err != nil {
		return "", err
	}
	// The impostor is a sound member of the mesh: under its own name it answers.
	err = lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
		own, err := s.Get(ctx, "account-auditor", "http://impostor."+s.Namespace+"/accounts/42")
		if err == nil && (own.Status != 200 || own.Answer == nil || own.Answer.Server != "impostor") {
			err = fmt.Errorf("the impostor does not answer under its own name: %+v", own)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	began := time.Now()
	rogue := s.Local(fmt.Sprintf(rogueSlice, pod.Status.PodIP))
	if err := s.Apply(ctx, rogue); err != nil {
		return "", err
	}
	defer func() { _ = s.Delete(context.WithoutCancel(ctx), rogue) }()
	asked := 0
	err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		for range 10 {
			got, err := s.Get(ctx, "account-auditor", s.URL("/accounts/42"))
			if err != nil {
				return err
			}
			asked++
			if got.Answer != nil && got.Answer.Server != "payroll" {
				return lab.Stop(fmt.Errorf("payroll's address was answered by %s", got.Answer.Server))
			}
		}
		events, err := s.events(ctx, began)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Verdict == "VERDICT_REFUSED" && e.Reporter == "REPORTER_SOURCE" && e.SourceIdentity == s.ID("account-auditor") &&
				host(e.DestinationAddress) == pod.Status.PodIP {
				return nil
			}
		}
		return errors.New("the client's proxy has not met the impostor yet")
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d requests, none answered by it; its refusal is audited", asked), nil
}

const impostor = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: impostor, namespace: finance}
---
apiVersion: v1
kind: Service
metadata: {name: impostor, namespace: finance}
spec:
  selector: {app: impostor}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: impostor, namespace: finance}
spec:
  selector: {matchLabels: {app: impostor}}
  template:
    metadata: {labels: {app: impostor}}
    spec:
      serviceAccountName: impostor
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: impostor
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [server, --name=impostor]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

const rogueSlice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: payroll-rogue
  namespace: finance
  labels: {kubernetes.io/service-name: payroll, endpointslice.kubernetes.io/managed-by: attacker}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["%s"], conditions: {ready: true}}]
`
