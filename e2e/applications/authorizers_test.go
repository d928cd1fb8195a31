package applications

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// TestAuthorizers asks external authorizers that others have written. Open Policy Agent decides by what Envoy tells it of a request and of its client; before it has come, and
// when it is gone, nothing passes.
func TestAuthorizers(t *testing.T) {
	if *image == "" {
		t.Skip("no -image: make applications builds it")
	}
	t.Run("opa", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		w := world{Program{Name: "nginx"}, "app-opa", true, true}
		cleanUp(ctx, t, []world{w})
		if err := w.deploy(ctx); err != nil {
			t.Fatal(err)
		}
		content, err := manifests.ReadFile("testdata/opa.yaml")
		if err != nil {
			t.Fatal(err)
		}
		// The policies of other programs admit the client alone, so that what the stranger gets would be theirs.
		open := "\n---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: open, namespace: app-opa}, spec: {rules: [{}]}}"
		manifest := strings.NewReplacer("NAMESPACE", w.namespace, "IMAGE", "docker.io/bulwark/applications:"+*image).Replace(string(content) + open)
		if err := cluster.Apply(ctx, manifest); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Ready(ctx, w.namespace, 2*time.Minute); err != nil {
			t.Fatal(err)
		}
		hears := func(who, method, path string, want int) {
			t.Helper()
			err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
				out, err := cluster.Exec(ctx, w.namespace, who, who, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "http://nginx"+path)
				if err == nil && string(out) != fmt.Sprint(want) {
					err = fmt.Errorf("%s: %s %s: %s, want %d", who, method, path, out, want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		hears("client", "GET", "/index.html", 200)
		hears("client", "GET", "/nothing", 404)
		hears("stranger", "GET", "/index.html", 200)
		hears("stranger", "GET", "/nothing", 403)
		hears("stranger", "POST", "/index.html", 403)
		hears("stranger", "GET", "/index.html?x", 403) // which is another path, to that policy
		if err := cluster.AppsV1().Deployments(w.namespace).Delete(ctx, "opa", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		hears("client", "GET", "/index.html", 403)
	})
}
