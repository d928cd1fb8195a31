package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// authorizerWorkload is an external authorizer: in the mesh, which takes nothing but mutual TLS there, and outside. Payroll's Sidecar leaves it nothing that it may call, and a
// policy of the namespace has the authorizer asked about all of its workloads.
const authorizerWorkload = `
apiVersion: v1
kind: Service
metadata: {name: authorizer, namespace: NAMESPACE}
spec:
  selector: {app: authorizer}
  ports: [{name: questions, port: 9191}, {name: http, port: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: authorizer, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: authorizer}}
  template:
    metadata: {labels: {app: authorizer}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: authorizer
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [authorizer]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}, capabilities: {drop: [ALL]}}
---
`

const narrowSidecar = `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: payroll, namespace: finance}
spec:
  workloadSelector: {labels: {app: payroll}}
  egress: [{hosts: ["./nothing.example"]}]
`

func customPolicy(s *claims.Scene, name, provider, rules string) string {
	return fmt.Sprintf(`---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: %s}
spec: {action: CUSTOM, provider: {name: %s}, rules: [%s]}
`, name, s.Namespace, provider, rules)
}

// External authorizers decide, over gRPC and HTTP, about requests and connections, in the mesh and outside, whatever narrows what a workload may call; without an answer nothing
// passes, and the trail says who has denied.
func TestExternalAuthorizersDecide(t *testing.T) {
	proveFor(t, "custom", 6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		manifest := s.Local(strings.ReplaceAll(authorizerWorkload, "NAMESPACE", "finance")+strings.ReplaceAll(authorizerWorkload, "NAMESPACE", "finance-outside")+narrowSidecar) +
			customPolicy(s, "asks", "in-mesh", `{to: [{operation: {paths: ["/accounts/asked*", "/asked", "/check/*"], ports: ["8080"]}}]}, {to: [{operation: {ports: ["9000"]}}]}`) +
			customPolicy(s, "asks-outside", "outside", `{to: [{operation: {paths: ["/accounts/outside*"], ports: ["8080"]}}]}`) +
			customPolicy(s, "asks-nowhere", "nowhere", `{to: [{operation: {paths: ["/accounts/nowhere*"], ports: ["8080"]}}]}`) +
			customPolicy(s, "asks-none", "none-of-that-name", `{to: [{operation: {paths: ["/accounts/none*"], ports: ["8080"]}}]}`)
		if err := s.Apply(ctx, manifest); err != nil {
			return "", err
		}
		if err := errors.Join(s.Ready(ctx, s.Namespace, 2*time.Minute), s.Ready(ctx, s.Outside, 2*time.Minute)); err != nil {
			return "", err
		}
		pod, err := s.Pod(ctx, s.Namespace, "authorizer")
		if err != nil {
			return "", err
		}
		at, stop, err := s.Forward(ctx, pod, 8080)
		if err != nil {
			return "", err
		}
		defer stop()
		control := claims.ControlAt(at)
		since := time.Now()
		before, err := hasBeenAsked(ctx, control)
		if err != nil {
			return "", err
		}
		for _, c := range []struct {
			path, answer string
			status       int
			asked        bool // the one in the mesh
		}{
			{"/accounts/1", "", 200, false},
			{"/accounts/asked", "yes", 200, true},
			{"/accounts/asked", "no", 402, true},
			{"/accounts/outside", "yes", 200, false},
			{"/accounts/outside", "no", 402, false},
			{"/accounts/nowhere", "yes", 403, false},
			{"/accounts/none", "yes", 403, false},
		} {
			if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
				r, err := s.Get(ctx, "account-auditor", s.URL(c.path), "-H", "x-answer: "+c.answer)
				if err == nil && r.Status != c.status {
					err = fmt.Errorf("%s with the answer %q: %d %s%s, want %d", c.path, c.answer, r.Status, r.Error, r.Body, c.status)
				}
				return err
			}); err != nil {
				return "", err
			}
			asked, err := hasBeenAsked(ctx, control)
			if err != nil {
				return "", err
			}
			if c.asked && (asked.Path != c.path || asked.Client != s.ID("account-auditor")) || (asked.Times > before.Times) != c.asked {
				return "", fmt.Errorf("%s: the authorizer has heard %+v, before %+v", c.path, asked, before)
			}
			before = asked
		}
		tcp := func() (sample.TCPResult, error) {
			return lab.ExecJSON[sample.TCPResult](ctx, s.Lab, s.Namespace, "account-auditor", "client", "sample", "tcp", "payroll."+s.Namespace+":9000")
		}
		if r, err := tcp(); err != nil || r.Answer == "" {
			return "", fmt.Errorf("a connection that the authorizer allows: %+v, %w", r, err)
		}
		if asked, err := hasBeenAsked(ctx, control); err != nil || asked.Times != before.Times+1 || asked.Client != s.ID("account-auditor") || asked.Path != "" {
			return "", fmt.Errorf("about a connection it has heard %+v, %w", asked, err)
		}
		if _, err := control.Post(ctx, "/close", ""); err != nil {
			return "", err
		}
		if r, err := tcp(); err != nil || r.Answer != "" {
			return "", fmt.Errorf("a connection that the authorizer denies: %+v, %w", r, err)
		}
		for _, c := range []struct{ path, policy, reason string }{
			{"/accounts/asked", "asks", "external authorizer in-mesh has denied it"},
			{"/accounts/outside", "asks-outside", "external authorizer outside has denied it"},
			{"/accounts/nowhere", "asks-nowhere", "external authorizer nowhere has not answered, and had to be asked"},
			{"/accounts/none", "asks-none", "a DENY policy matched"},
			{"", "asks", "external authorizer in-mesh has denied it"},
		} {
			if err := s.Audited(ctx, since, "destination", func(e *claims.Event) bool {
				return e.Verdict == "VERDICT_DENIED" && e.Path == c.path && e.Reason == c.reason && strings.HasPrefix(e.Policy, s.Namespace+"/"+c.policy+" rule ") && e.SourceIdentity == s.ID("account-auditor")
			}); err != nil {
				return "", fmt.Errorf("%q, %s: %w", c.path, c.reason, err)
			}
		}
		return "allowed and denied by authorizers over gRPC and HTTP, connections too; nothing passes without an answer", nil
	})
}

func hasBeenAsked(ctx context.Context, control claims.Control) (out sample.Asked, err error) {
	text, err := control.Post(ctx, "/asked", "")
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(text), &out)
}
