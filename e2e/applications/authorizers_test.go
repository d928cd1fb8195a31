package applications

import (
	"context"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/cookbook"
)

// TestAuthorizers asks external authorizers that others have written, as the cookbook has it. Open Policy Agent decides by what Envoy tells it of a request and of its
// client; when it is gone, nothing passes.
func TestAuthorizers(t *testing.T) {
	if *image == "" {
		t.Skip("no -image: make applications builds it")
	}
	t.Run("opa", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		removed := []string{"app-finance", "app-finance-outside", "opa"}
		if err := cluster.RemoveNamespaces(ctx, removed...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := cluster.DeleteNamespaces(ctx, removed...); err != nil && !*keep {
				t.Error(err)
			}
		})
		s, err := claims.Deploy(ctx, cluster, "app-finance")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, s.Local(`
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: payroll-readers, namespace: finance}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ledger-readers, namespace: finance}}`)); err != nil {
			t.Fatal(err)
		}
		tasks, err := cookbook.Read("../../docs/cookbook.md")
		if err != nil {
			t.Fatal(err)
		}
		const published = "openpolicyagent/opa:1.4.2-envoy"
		for _, task := range tasks {
			if !strings.Contains(task.Manifest, published) {
				continue
			}
			if err := s.Apply(ctx, s.Local(strings.ReplaceAll(task.Manifest, published, "docker.io/bulwark/applications:"+*image))); err != nil {
				t.Fatal(err)
			}
			if err := cluster.Ready(ctx, "opa", 2*time.Minute); err != nil {
				t.Fatal(err)
			}
			if err := task.Ask(ctx, s, nil); err != nil {
				t.Error(err)
			}
			if err := cluster.AppsV1().Deployments("opa").Delete(ctx, "opa", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			gone := cookbook.Task{Title: "without it", Questions: []cookbook.Question{{Who: "account-auditor", What: "`GET /accounts/1`", Gets: "403"}}}
			if err := gone.Ask(ctx, s, nil); err != nil {
				t.Error(err)
			}
			return
		}
		t.Error("the cookbook has no task with Open Policy Agent")
	})
}
