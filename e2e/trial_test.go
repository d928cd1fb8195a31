package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const tried = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closing, namespace: finance, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: payroll}}
  action: DENY
  rules:
  - to: [{operation: {ports: ["8080", "7000"], paths: [/accounts/closed/*, /grpc.health.v1.Health/Check]}}]
  - to: [{operation: {ports: ["9000"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: widening, namespace: finance, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: payroll}}
  rules: [{to: [{operation: {methods: [POST], paths: [/accounts/*]}}]}]
`

// Requests, calls and connections are decided as before while policies are on trial. What these would change is in the audit trail and in a metric, although no policy audits
// it, and what is allowed and stays so is not in the trail. Without the annotation it is what was foretold.
func TestWhatPoliciesOnTrialWouldChangeIsTold(t *testing.T) {
	prove(t, "trial", func(ctx context.Context, s *claims.Scene) (string, error) {
		if err := s.Delete(ctx, s.Local(`{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: audit-everything, namespace: finance}}`)); err != nil {
			return "", err
		}
		if err := s.Apply(ctx, s.Local(tried)); err != nil {
			return "", err
		}
		began := time.Now()
		for _, c := range []struct {
			what, verdict, protocol, path, trial, policy string
			ask                                          func(context.Context) (string, error)
			gets                                         string
		}{
			{"a request that a DENY policy on trial matches", "ALLOWED", "HTTP/1.1", "/accounts/closed/1", "DENIED", "/closing rule 0", asked(s, "GET", "/accounts/closed/1"), "200"},
			{"a request that an ALLOW policy on trial matches", "DENIED", "HTTP/1.1", "/accounts/1", "ALLOWED", "/widening rule 0", asked(s, "POST", "/accounts/1"), "403"},
			{"a call of gRPC", "ALLOWED", "HTTP/2", "/grpc.health.v1.Health/Check", "DENIED", "/closing rule 0", func(ctx context.Context) (string, error) {
				got, err := lab.ExecJSON[sample.RPCResult](ctx, s.Lab, s.Namespace, "account-auditor", "client", "sample", "rpc", "payroll."+s.Namespace+":7000")
				return got.Code, err
			}, "OK"},
			{"a connection", "ALLOWED", "TCP", "", "DENIED", "/closing rule 1", func(ctx context.Context) (string, error) {
				got, err := lab.ExecJSON[sample.TCPResult](ctx, s.Lab, s.Namespace, "account-auditor", "client", "sample", "tcp", "payroll."+s.Namespace+":9000")
				return got.Error, err
			}, ""},
		} {
			// Trials change no condition that could be waited for, so it is asked until the proxy has them.
			err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
				if got, err := c.ask(ctx); err != nil || got != c.gets {
					return fmt.Errorf("it gets %q, want %q: %w", got, c.gets, err)
				}
				events, err := s.Events(ctx, began)
				if err != nil {
					return err
				}
				for _, e := range events {
					if e.Protocol == c.protocol && e.Path == c.path && e.Verdict == "VERDICT_"+c.verdict && e.Trial != nil && e.Trial.Verdict == "VERDICT_"+c.trial && e.Trial.Policy == s.Namespace+c.policy {
						return nil
					}
				}
				return fmt.Errorf("none of %d records says what it would be", len(events))
			})
			if err != nil {
				return "", fmt.Errorf("%s: %w", c.what, err)
			}
		}
		if got, err := asked(s, "GET", "/accounts/open")(ctx); err != nil || got != "200" {
			return "", fmt.Errorf("what no policy on trial matches: %s, %w", got, err)
		}
		var metrics string
		if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) (err error) {
			metrics, err = triedMetrics(ctx, s)
			return err
		}); err != nil {
			return "", err
		}
		if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			out, err := s.Meshctl(ctx, "audit", "tail", "-n", s.Namespace, "--trial", "denied")
			if err == nil && (!strings.Contains(string(out), "; on trial denied: "+s.Namespace+"/closing rule 0") || strings.Contains(string(out), "on trial allowed")) {
				err = errors.New("not the one that it would deny")
			}
			if err != nil {
				return fmt.Errorf("audit tail --trial denied: %w\n%s", err, out)
			}
			return nil
		}); err != nil {
			return "", err
		}
		if events, err := s.Events(ctx, began); err != nil || slices.ContainsFunc(events, func(e claims.Event) bool { return e.Path == "/accounts/open" }) {
			return "", fmt.Errorf("what is allowed and stays so is in the trail, or %w", err)
		}
		if err := s.Apply(ctx, s.Local(strings.ReplaceAll(tried, `"true"`, `"false"`))); err != nil {
			return "", err
		}
		for path, want := range map[string]string{"GET /accounts/closed/1": "403", "POST /accounts/1": "200"} {
			method, path, _ := strings.Cut(path, " ")
			if err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
				got, err := asked(s, method, path)(ctx)
				if err == nil && got != want {
					err = fmt.Errorf("%s %s without the annotation: %s, want %s", method, path, got, want)
				}
				return err
			}); err != nil {
				return "", err
			}
		}
		return metrics, nil
	})
}

// asked is what the auditor gets of payroll.
func asked(s *claims.Scene, method, path string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		got, err := s.Get(ctx, "account-auditor", s.URL(path), "--method="+method)
		return fmt.Sprint(got.Status), err
	}
}

// triedMetrics reads what the agent of payroll's node has counted of payroll, and expects something of both kinds.
func triedMetrics(ctx context.Context, s *claims.Scene) (string, error) {
	payroll, err := s.Pod(ctx, s.Namespace, "payroll")
	if err != nil {
		return "", err
	}
	agents, err := s.Component(ctx, "agent")
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(agents, func(p corev1.Pod) bool { return p.Spec.NodeName == payroll.Spec.NodeName })
	if i < 0 {
		return "", fmt.Errorf("no agent on node %s", payroll.Spec.NodeName)
	}
	address, stop, err := s.Forward(ctx, &agents[i], mesh.MonitoringPort)
	if err != nil {
		return "", err
	}
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("metrics of the agent: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "bulwark_authz_trial_total{") && strings.Contains(line, fmt.Sprintf(`namespace=%q,pod=%q`, s.Namespace, payroll.Name)) && strings.Contains(line, `workload="payroll"`) && !strings.HasSuffix(line, " 0\n") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	if len(out) != 2 {
		return "", fmt.Errorf("the agent has counted %q of payroll, want something of both kinds", out)
	}
	return strings.Join(out, "; "), nil
}
