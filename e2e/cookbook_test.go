package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/cookbook"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// Each task of the cookbook does what it says. That with Open Policy Agent needs it in an image, and is for TestAuthorizers of package applications to try.
func TestCookbook(t *testing.T) {
	tasks, err := cookbook.Read("../docs/cookbook.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) != 14 {
		t.Fatalf("%d tasks", len(tasks))
	}
	proveFor(t, "cookbook", 10*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		issuer, err := s.IdentityProvider(ctx)
		if err != nil {
			return "", err
		}
		defer issuer.Close()
		if err := s.Delete(ctx, s.Local(`
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: payroll-readers, namespace: finance}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ledger-readers, namespace: finance}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: finance}}`)); err != nil {
			return "", err
		}
		server, err := serverOutside(ctx, t, s.Outside)
		if err != nil {
			return "", err
		}
		asked, tried := 0, 0
		for _, task := range tasks {
			if strings.Contains(task.Manifest, "image: openpolicyagent/opa") {
				continue
			}
			manifest := strings.ReplaceAll(s.Local(task.Manifest), "203.0.113.10", server)
			if err := s.Apply(ctx, manifest); err != nil {
				return "", fmt.Errorf("%s: %w", task.Title, err)
			}
			if err := task.Ask(ctx, s, issuer); err != nil {
				return "", err
			}
			asked, tried = asked+len(task.Questions), tried+1
			if err := s.Delete(ctx, manifest); err != nil {
				return "", fmt.Errorf("%s: %w", task.Title, err)
			}
			// What follows begins without it.
			if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
				for _, who := range []string{"web", "stranger"} {
					if got, err := (cookbook.Question{Who: who, What: "`GET /accounts/1`"}).Answer(ctx, s, issuer); err != nil || got != "200" {
						return fmt.Errorf("%s still gets %s, %w", who, got, err)
					}
				}
				return nil
			}); err != nil {
				return "", fmt.Errorf("after %s: %w", task.Title, err)
			}
		}
		return fmt.Sprintf("%d tasks, %d questions", tried, asked), nil
	})
}

// serverOutside starts a server outside of the mesh, and returns its address.
func serverOutside(ctx context.Context, t *testing.T, namespace string) (string, error) {
	if err := cluster.Apply(ctx, newOutsideCA(t).server(t, namespace, "api", "api.example.com")); err != nil {
		return "", err
	}
	if err := cluster.Ready(ctx, namespace, 2*time.Minute); err != nil {
		return "", err
	}
	pod, err := cluster.Pod(ctx, namespace, "api")
	if err != nil {
		return "", err
	}
	return pod.Status.PodIP, nil
}
