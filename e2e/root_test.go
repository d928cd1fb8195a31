package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// What the root namespace says, and selects nothing, holds in a namespace that has nothing of its own, as long as it is there: a policy, and a mode, until the namespace says
// otherwise. It changes the mesh, so no other test runs beside it.
func TestPoliciesOfTheRootNamespaceHoldInTheWholeMesh(t *testing.T) {
	const ns, outside = "e2e-root", "e2e-root-outside"
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cleanUp(t, ns, outside)
	const denied = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: e2e-root, namespace: bulwark-system}, spec: {action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]}}`
	const strict = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: e2e-root, namespace: bulwark-system}, spec: {mtls: {mode: STRICT}}}`
	const both = denied + "\n---\n" + strict
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := cluster.Delete(ctx, both); err != nil {
			t.Error(err)
		}
	})
	err := cluster.Delete(ctx, both) // of a run that was killed
	if err == nil {
		err = cluster.Apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {istio-injection: enabled}}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n---\n", ns, outside)+
			anything(ns, "server")+services(ns, "server")+anything(ns, "client")+anything(outside, "client"))
	}
	if err == nil {
		err = cluster.Ready(ctx, outside, time.Minute)
	}
	if err == nil {
		err = reachable(ctx, ns, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	becomes := func(from, path string, want int) {
		t.Helper()
		err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			got, err := lab.ExecJSON[sample.Response](ctx, cluster, from, "client", "app", "sample", "get", "http://server."+ns+path)
			if err == nil && got.Status != want {
				err = fmt.Errorf("%s from %s: %+v, want %d", path, from, got, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	apply := func(manifest string) {
		t.Helper()
		if err := cluster.Apply(ctx, manifest); err != nil {
			t.Fatal(err)
		}
	}
	becomes(ns, "/denied", 200)
	becomes(outside, "/", 200)
	apply(strict)
	becomes(outside, "/", 0) // plaintext
	apply(denied)
	becomes(ns, "/denied", 403)
	becomes(ns, "/", 200)
	apply(fmt.Sprintf(`{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: own, namespace: %s}, spec: {mtls: {mode: PERMISSIVE}}}`, ns))
	becomes(outside, "/", 200)
	becomes(outside, "/denied", 403)
	if err := cluster.Delete(ctx, both); err != nil {
		t.Fatal(err)
	}
	becomes(ns, "/denied", 200)
	becomes(outside, "/denied", 200)
}
