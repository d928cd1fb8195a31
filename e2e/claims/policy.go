package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

const webMayRead = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-may-read, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/finance/sa/web]}}]
      to: [{operation: {methods: [GET], paths: [/accounts/*], ports: ["8080"]}}]
`

// AChangedPolicyIsEnforced is claim 7. A time printed runs from the moment before the change is sent to the API server to
// the answer of the first request with the new verdict; it compares this machine's clock with the pod's.
func AChangedPolicyIsEnforced(ctx context.Context, s *Scene) (string, error) {
	policy := s.Local(webMayRead)
	allowed, err := s.Enforced(ctx, "web", "403", "200", func() error { return s.Apply(ctx, policy) })
	if err != nil {
		return "", fmt.Errorf("applying the policy: %w", err)
	}
	denied, err := s.Enforced(ctx, "web", "200", "403", func() error { return s.Delete(ctx, policy) })
	if err != nil {
		return "", fmt.Errorf("deleting the policy: %w", err)
	}
	return fmt.Sprintf("allowed %d ms after apply, denied %d ms after delete", allowed.Milliseconds(), denied.Milliseconds()), nil
}

// Enforced has an account read accounts without pause, over one connection unless flags of `sample load` say otherwise,
// makes a change when the first request had the verdict before, and returns how long it took until one had the verdict
// after.
func (s *Scene) Enforced(ctx context.Context, account, before, after string, change func() error, flags ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var changed time.Time
	var changeErr error
	out, err := s.ExecNoted(ctx, func() {
		changed = time.Now()
		if changeErr = change(); changeErr != nil {
			cancel()
		}
	}, s.Namespace, account, "client", append([]string{"sample", "load", s.URL("/accounts/42"), "--duration=20s", "--interval=2ms", "--until=" + after}, flags...)...)
	if changeErr != nil || err != nil {
		return 0, errors.Join(changeErr, err)
	}
	var result sample.LoadResult
	if err := json.Unmarshal(out, &result); err != nil {
		return 0, fmt.Errorf("load printed %q: %w", out, err)
	}
	if len(result.Changes) != 2 || result.Changes[0].Outcome != before || result.Changes[1].Outcome != after {
		return 0, fmt.Errorf("verdicts went %+v, want %s and then %s (%v)", result.Changes, before, after, result.Errors)
	}
	return result.Changes[1].At.Sub(changed), nil
}

// Grants has an account that no policy admits ask without pause while the first one that does is applied and deleted, some times. It
// returns how long each took from the moment before the change was sent to the API server to the first answer by it.
func (s *Scene) Grants(ctx context.Context, times int) (granted, taken []time.Duration, err error) {
	policy := s.Local(webMayRead)
	for i := range times {
		in, err := s.Enforced(ctx, "web", "403", "200", func() error { return s.Apply(ctx, policy) }, "--interval=1ms")
		if err != nil {
			return nil, nil, fmt.Errorf("applying the policy, time %d: %w", i, err)
		}
		out, err := s.Enforced(ctx, "web", "200", "403", func() error { return s.Delete(ctx, policy) }, "--interval=1ms")
		if err != nil {
			return nil, nil, fmt.Errorf("deleting the policy, time %d: %w", i, err)
		}
		granted, taken = append(granted, in), append(taken, out)
	}
	return granted, taken, nil
}
