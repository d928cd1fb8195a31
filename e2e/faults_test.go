package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Each component's pods are killed, without a chance to say good-bye, while requests go on: none fails, and each is
// in the audit trail. An event may be there twice if an agent was killed between taking it and saying so.
func TestNoRequestFailsAndNoEventIsLostWhileComponentsAreKilled(t *testing.T) {
	prove(t, "faults", func(ctx context.Context, s *claims.Scene) (string, error) {
		mark := fmt.Sprintf("killed-%d", time.Now().UnixNano()) // the trail outlives a run of the tests
		requests, err := underLoad(ctx, s, mark, func() error {
			for _, component := range []string{"pilot", "citadel", "mixer", "agent"} {
				if err := kill(ctx, component); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return "", err
		}
		if _, err := s.AuditedPaths(ctx, "/accounts/"+mark, requests, 2); err != nil {
			return "", err
		}
		// What came back works: a policy reaches the proxies, through a new Pilot and new agents.
		happened, err := claims.AChangedPolicyIsEnforced(ctx, s)
		return fmt.Sprintf("%d requests, 0 failed, all audited; then %s", requests, happened), err
	})
}

// underLoad does something while requests for /accounts/<mark>-… go on, and returns how many there were. One that fails is an error.
func underLoad(ctx context.Context, s *claims.Scene, mark string, do func() error) (int, error) {
	// That a pod is ready is known to the API server before it is to the proxies; with Pilot killed between the two, they could not know.
	if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		first, err := s.Get(ctx, "account-auditor", s.URL("/accounts/first"))
		if err == nil && first.Status != 200 {
			err = fmt.Errorf("the first answer is %+v", first)
		}
		return err
	}); err != nil {
		return 0, err
	}
	requests := 0
	ended, stopped := make(chan error, 1), make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			piece, err := lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client", "sample", "load",
				fmt.Sprintf("http://payroll.%s/accounts/%s-%d-{n}", s.Namespace, mark, n), "--duration=3s", "--interval=5ms", "--workers=2")
			if err != nil {
				ended <- err
				return
			}
			requests += piece.Requests
			if piece.Outcomes["200"] != piece.Requests {
				ended <- fmt.Errorf("outcomes %v of %d requests: %v", piece.Outcomes, piece.Requests, piece.Errors)
				return
			}
			select {
			case <-stopped:
				ended <- nil
				return
			default:
			}
		}
	}()
	err := do()
	close(stopped)
	err = errors.Join(err, <-ended)
	return requests, err
}

// kill deletes the pods of a component at once and waits until others are ready in their place.
func kill(ctx context.Context, component string) error {
	pods := cluster.CoreV1().Pods(mesh.Namespace)
	selector := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + component}
	before, err := pods.List(ctx, selector)
	if err != nil {
		return err
	}
	old := map[string]bool{}
	for _, pod := range before.Items {
		old[string(pod.UID)] = true
		if err := pods.Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0)); err != nil {
			return err
		}
	}
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		now, err := pods.List(ctx, selector)
		if err != nil {
			return err
		}
		ready := 0
		for _, pod := range now.Items {
			if old[string(pod.UID)] {
				return fmt.Errorf("pod %s is still there", pod.Name)
			}
			for _, c := range pod.Status.ContainerStatuses {
				if c.Ready {
					ready++
				}
			}
		}
		if ready < len(before.Items) {
			return fmt.Errorf("%d of %d pods of %s are ready", ready, len(before.Items), component)
		}
		return nil
	})
}

const unenforceable = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: broken, namespace: %s}
spec: %s
`

func TestUnenforceablePolicyIsRefusedWithFieldAndReason(t *testing.T) {
	prove(t, "admission", func(ctx context.Context, s *claims.Scene) (string, error) {
		for spec, want := range map[string]string{
			`{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]}`: "spec.rules[0].from[0].source.requestPrincipals",
			`{rules: [{from: [{source: {requestPrincipals: [nobody]}}]}]}`:                                   "requestPrincipals",
			`{rules: [{when: [{key: "no.such.key", values: [x]}]}]}`:                                         "no.such.key",
			`{action: DENY}`: "spec.rules",
			`{rules: [{from: [{source: {ipBlocks: ["not-an-address"]}}]}]}`:    "ipBlocks",
			`{action: DENY, rules: [{to: [{operation: {ports: ["99999"]}}]}]}`: "ports",
		} {
			err := s.Apply(ctx, fmt.Sprintf(unenforceable, s.Namespace, spec))
			if err == nil || !strings.Contains(err.Error(), want) {
				return "", fmt.Errorf("policy %s: got %v, want a refusal that names %s", spec, err, want)
			}
		}
		return "each refused", nil
	})
}

// A pod without a proxy that mounts the agent's volume gets its identity from the SPIFFE Workload API.
func TestWorkloadAPIGivesAPodItsIdentity(t *testing.T) {
	prove(t, "workload-api", func(ctx context.Context, s *claims.Scene) (string, error) {
		err := s.Apply(ctx, fillIn(barePod("caller", bareClient, ownSocket), s.Outside, s.Tag))
		if err != nil {
			return "", err
		}
		if err := s.Ready(ctx, s.Outside, time.Minute); err != nil {
			return "", err
		}
		got, err := lab.ExecJSON[sample.SVIDResult](ctx, s.Lab, s.Outside, "caller", "client", "sample", "svid", "/spiffe/agent.sock")
		if err != nil {
			return "", err
		}
		want := fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/caller", s.Outside)
		if got.ID != want || got.Roots != 1 {
			return "", fmt.Errorf("got %+v, want %s and one root", got, want)
		}
		return got.ID, nil
	})
}
