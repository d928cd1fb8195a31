package applications

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// TestBalancers has load balancers that others have written stand before workloads of the mesh, and say by the PROXY protocol for whom they connect. Of two clients who are the same
// but for their addresses, policies admit one.
func TestBalancers(t *testing.T) {
	if *image == "" {
		t.Skip("no -image: make applications builds it")
	}
	t.Run("haproxy", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		const ns, out = "app-haproxy", "app-haproxy-outside"
		removed := []string{ns, out}
		if err := cluster.RemoveNamespaces(ctx, removed...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if t.Failed() {
				if err := collect(ctx, "../artifacts/"+t.Name(), ns, out, mesh.Namespace); err != nil {
					t.Log(err)
				}
			}
			install(ctx, t)
			if err := cluster.DeleteNamespaces(ctx, removed...); err != nil && !*keep {
				t.Error(err)
			}
		})
		content, err := manifests.ReadFile("testdata/haproxy.yaml")
		if err != nil {
			t.Fatal(err)
		}
		servers, policies, _ := strings.Cut(strings.NewReplacer("NAMESPACE", ns, "OUTSIDE", out, "IMAGE", "docker.io/bulwark/applications:"+*image).Replace(string(content)), "# Policies.\n")
		if err := cluster.Apply(ctx, servers); err != nil {
			t.Fatal(err)
		}
		for _, n := range removed {
			if err := cluster.Ready(ctx, n, 3*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		addresses := map[string]string{}
		for _, app := range []string{"haproxy", "partner"} {
			pod, err := cluster.Pod(ctx, out, app)
			if err != nil {
				t.Fatal(err)
			}
			addresses[app] = pod.Status.PodIP
		}
		if err := cluster.Apply(ctx, strings.NewReplacer("HAPROXY", addresses["haproxy"], "PARTNER", addresses["partner"]).Replace(policies)); err != nil {
			t.Fatal(err)
		}
		install(ctx, t, "loadBalancers={"+addresses["haproxy"]+"}")
		run := func(ctx context.Context, app, script string) error {
			out, err := cluster.Exec(ctx, out, app, app, "bash", "-exo", "pipefail", "-c", script)
			if err != nil {
				err = fmt.Errorf("%w\nit printed: %s", err, out)
			}
			return err
		}
		// HAProxy sends a server nothing until its checks have found it to answer: to HAProxy itself.
		err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error { return run(ctx, "partner", balanced) })
		if err != nil {
			t.Fatalf("the partner: %v", err)
		}
		if err := run(ctx, "other", unbalanced); err != nil {
			t.Errorf("another client: %v", err)
		}
		if err := run(ctx, "partner", balanced); err != nil {
			t.Errorf("the partner, after another client: %v", err)
		}
	})
}

// Ports of HAProxy: 8081 forwards connections, with a header of version 1; 8082 requests, over connections that it keeps, with one of version 2; 8083 connections, without a header; 8084
// connections of Redis, with one of version 2.
const (
	balanced = `
		for port in 8081 8082; do
			curl -sf http://haproxy:$port/?[1-20] | grep -c 'hello from nginx' | grep -x 20
			ab -q -k -n 200 -c 4 http://haproxy:$port/ | tee /tmp/ab | grep -E 'Complete requests: +200'
			if grep Non-2xx /tmp/ab; then exit 1; fi
		done
		redis-cli -h haproxy -p 8084 set letter hello | grep -x OK
		redis-cli -h haproxy -p 8084 get letter | grep -x hello
		curl -s -o /dev/null -w '%{http_code}' http://haproxy:8083/ | grep -x 403`
	unbalanced = `
		for port in 8081 8082 8083; do
			for i in $(seq 20); do curl -s -o /dev/null -w '%{http_code}' http://haproxy:$port/ | grep -x 403; done
		done
		if timeout 10 redis-cli -h haproxy -p 8084 get letter | grep hello; then exit 1; fi`
)

func install(ctx context.Context, t *testing.T, set ...string) {
	t.Helper()
	var log bytes.Buffer
	if err := cluster.Install(ctx, &log, set...); err != nil {
		t.Fatalf("installing with %q: %v\n%s", set, err, &log)
	}
}
