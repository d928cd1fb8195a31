package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	asking := s.ask(ctx, account, s.URL("/accounts/42"), append([]string{"--duration=20s", "--interval=2ms"}, flags...)...)
	took, err := asking.hears(before, func() error { return nil })
	if err == nil {
		took, err = asking.hears(after, change)
	}
	return took, errors.Join(err, asking.end())
}

// Grants has an account that no policy admits ask each millisecond while the first one that does is applied and deleted, some times, with
// a pause between. It returns how long each took from the moment before the change was sent to the API server to the first answer by it.
//
// The client asks by the Service's address: a refusal ends its connection, and four questions to the cluster's DNS for each request
// would take the processor from what is measured.
func (s *Scene) Grants(ctx context.Context, times int) (granted, taken []time.Duration, err error) {
	policy := s.Local(webMayRead)
	service, err := s.CoreV1().Services(s.Namespace).Get(ctx, "payroll", metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	asking := s.ask(ctx, "web", "http://"+service.Spec.ClusterIP+"/accounts/42", "--duration=10m", "--interval=1ms")
	pace := time.NewTicker(250 * time.Millisecond)
	defer pace.Stop()
	_, err = asking.hears("403", func() error { return nil })
	for i := range times {
		var in, out time.Duration
		if err == nil {
			<-pace.C
			in, err = asking.hears("200", func() error { return s.Apply(ctx, policy) })
		}
		if err == nil {
			<-pace.C
			out, err = asking.hears("403", func() error { return s.Delete(ctx, policy) })
		}
		if err != nil {
			err = fmt.Errorf("time %d: %w", i, err)
			break
		}
		granted, taken = append(granted, in), append(taken, out)
	}
	return granted, taken, errors.Join(err, asking.end())
}

// asking is a client that makes requests without pause in a pod, and tells when their outcome becomes another.
type asking struct {
	changes chan sample.Change
	stdin   io.Closer
	ended   chan error
}

func (s *Scene) ask(ctx context.Context, account, url string, flags ...string) *asking {
	in, stdin := io.Pipe()
	out, stdout := io.Pipe()
	a := &asking{changes: make(chan sample.Change), stdin: stdin, ended: make(chan error, 1)}
	go func() {
		err := s.ExecAttended(ctx, in, stdout, s.Namespace, account, "client", append([]string{"sample", "load", url, "--attended"}, flags...)...)
		stdout.Close()
		a.ended <- err
	}()
	go func() {
		defer close(a.changes)
		for lines := json.NewDecoder(out); ; {
			var c sample.Change
			if lines.Decode(&c) != nil || c.Outcome == "" { // what comes last is the sum of all requests
				_, _ = io.Copy(io.Discard, out)
				return
			}
			a.changes <- c
		}
	}()
	return a
}

// hears makes a change and returns how long it takes until the outcome of requests is another, which has to be the given one.
func (a *asking) hears(outcome string, change func() error) (time.Duration, error) {
	began := time.Now()
	if err := change(); err != nil {
		return 0, err
	}
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	select {
	case c, ok := <-a.changes:
		if !ok {
			return 0, fmt.Errorf("the client ended before a request had the outcome %s", outcome)
		}
		if c.Outcome != outcome {
			return 0, fmt.Errorf("the outcome became %s, want %s", c.Outcome, outcome)
		}
		return c.At.Sub(began), nil
	case <-limit.C:
		return 0, fmt.Errorf("no request had the outcome %s", outcome)
	}
}

// end stops the client, and fails if an outcome changed that nobody waited for, or if the command failed.
func (a *asking) end() error {
	a.stdin.Close()
	var errs []error
	for c := range a.changes {
		errs = append(errs, fmt.Errorf("the outcome became %s while nothing was changed", c.Outcome))
	}
	return errors.Join(append(errs, <-a.ended)...)
}
