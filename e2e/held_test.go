package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// bystander selects nobody; there are so many of it that most of what the API server had is gone with them.
const bystander = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bystander-%d, namespace: %s}
spec: {selector: {matchLabels: {app: nobody}}, rules: [{}]}
---
`

const admitsWeb = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admits-web, namespace: %s}
spec:
  selector: {matchLabels: {app: payroll}}
  rules: [{from: [{source: {principals: [%s]}}]}]
`

// Policies go while Pilot cannot see it, and the API server that it comes back to does not know any more what has happened, as one that
// was restored from a backup does not. Pilot cannot tell that from a server that lists too little: the proxies keep what they
// have until an operator, who is told by an Event, has looked and says that it is so.
func TestRemovalsThatNobodySawAreHeldUntilConfirmed(t *testing.T) {
	prove(t, "held", func(ctx context.Context, s *claims.Scene) (string, error) {
		const many = 30
		var policies strings.Builder
		for i := range many {
			fmt.Fprintf(&policies, bystander, i, s.Namespace)
		}
		fmt.Fprintf(&policies, admitsWeb, s.Namespace, strings.TrimPrefix(s.ID("web"), "spiffe://"))
		if err := s.Apply(ctx, policies.String()); err != nil {
			return "", err
		}
		answered := func(status int) func(context.Context) error {
			return func(ctx context.Context) error {
				got, err := s.Get(ctx, "web", s.URL("/accounts/42"))
				if err == nil && got.Status != status {
					err = fmt.Errorf("web is answered %+v, want %d", got, status)
				}
				return err
			}
		}
		if err := lab.PollFor(ctx, 30*time.Second, answered(200)); err != nil {
			return "", err
		}
		pilots, err := s.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=pilot"})
		if err != nil || len(pilots.Items) != 1 {
			return "", fmt.Errorf("one Pilot is wanted, there are %d: %w", len(pilots.Items), err)
		}
		began := time.Now()
		resume, err := s.PauseContainer(&pilots.Items[0], "pilot")
		if err != nil {
			return "", err
		}
		// After the restart, so that nothing of it can still reach Pilot over the old connection.
		if err = s.RestartAPIServer(ctx); err == nil {
			err = s.Delete(ctx, policies.String())
		}
		if err := errors.Join(err, resume()); errors.Is(err, lab.ErrElsewhere) {
			t.Skip(err)
		} else if err != nil {
			return "", err
		}
		defer func() { // not to leave what is held, if this fails; what was confirmed is not held any more
			_, _ = s.Meshctl(context.WithoutCancel(ctx), "pilot", "confirm")
		}()
		// With them is held whatever else went meanwhile, such as the objects of an earlier test.
		if err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
			out, err := s.Meshctl(ctx, "pilot", "held", "-o", "json")
			if err != nil {
				return err
			}
			var held []struct {
				Kind  string `json:"kind"`
				Count int    `json:"count"`
			}
			if err := json.Unmarshal(out, &held); err != nil {
				return err
			}
			for _, h := range held {
				if h.Kind == "policy" && h.Count > many {
					return nil
				}
			}
			return fmt.Errorf("`meshctl pilot held` does not show %d policies: %s", many+1, out)
		}); err != nil {
			return "", err
		}
		if err := errors.Join(answered(200)(ctx), lab.PollFor(ctx, 30*time.Second, announced("RemovalsHeld", began))); err != nil {
			return "", err
		}
		if out, err := s.Meshctl(ctx, "pilot", "confirm"); err != nil || !strings.Contains(string(out), "removals are let through") {
			return "", fmt.Errorf("`meshctl pilot confirm`: %w: %s", err, out)
		}
		if err := errors.Join(lab.PollFor(ctx, 30*time.Second, answered(403)), lab.PollFor(ctx, 30*time.Second, announced("RemovalsConfirmed", began))); err != nil {
			return "", err
		}
		out, err := s.Meshctl(ctx, "pilot", "confirm")
		if err == nil || !strings.Contains(err.Error(), "holds nothing back") {
			return "", fmt.Errorf("a second `meshctl pilot confirm`: %w: %s", err, out)
		}
		return fmt.Sprintf("%d removals that a restarted API server did not tell of were held, and were carried out when they were confirmed", many+1), nil
	})
}

// announced finds an Event of the control plane's namespace, which is either new or has been seen again.
func announced(reason string, since time.Time) func(context.Context) error {
	return func(ctx context.Context) error {
		events, err := cluster.EventsV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err
		}
		since := since.Add(-time.Second) // Events are written in whole seconds
		for _, e := range events.Items {
			if e.Regarding.Name == mesh.Namespace && (e.EventTime.After(since) || e.Series != nil && e.Series.LastObservedTime.After(since)) {
				return nil
			}
		}
		return fmt.Errorf("no Event %s of namespace %s since %s, of %d", reason, mesh.Namespace, since.Format(time.TimeOnly), len(events.Items))
	}
}
