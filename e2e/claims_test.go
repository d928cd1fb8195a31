// The end-to-end tests: each of Bulwark's claims on a real cluster, in namespaces of its own. See README.md.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var (
	tag     = flag.String("tag", "dev", "tag of the images")
	keep    = flag.Bool("keep", false, "leave the namespaces of the tests")
	cluster *lab.Lab
)

// TestMain makes sure that the mesh is installed, with the settings that the claims need.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "3"); err != nil { // they wait more than they work, but more at once starve the cluster's DNS on two cores
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var err error
	if cluster, err = lab.Open(*tag); err == nil {
		err = cluster.Install(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: no mesh to test:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// prove tries a claim in fresh namespaces, which it removes; on failure it keeps logs and proxies' configurations.
func prove(t *testing.T, name string, claim func(context.Context, *claims.Scene) (string, error)) {
	t.Helper()
	proveFor(t, name, 5*time.Minute, claim)
}

// proveFor is prove for a claim that may take longer, or needs labels ("key: value") on its namespace.
func proveFor(t *testing.T, name string, limit time.Duration, claim func(context.Context, *claims.Scene) (string, error), labels ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cleanUp(t, "e2e-"+name, "e2e-"+name+"-outside")
	scene, err := claims.Deploy(ctx, cluster, "e2e-"+name, labels...)
	if err != nil {
		t.Fatal(err)
	}
	happened, err := claim(ctx, scene)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(happened)
}

// cleanUp removes what a run that was killed has left of a test's namespaces, and removes them at the end of the test; of one
// that has failed it keeps logs and proxies' configurations.
func cleanUp(t *testing.T, namespaces ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := cluster.RemoveNamespaces(ctx, namespaces...)
	if err == nil {
		err = changeRevocations(ctx, func(list revocation.List) revocation.List {
			return slices.DeleteFunc(list, func(r revocation.Revocation) bool {
				id, err := spiffe.Parse(r.Identity)
				return err == nil && slices.Contains(namespaces, id.Namespace)
			})
		})
	}
	if err != nil {
		t.Fatalf("removing what an earlier run has left: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			collect(ctx, t, append(namespaces, mesh.Namespace)...)
		}
		if !*keep {
			if err := cluster.DeleteNamespaces(ctx, namespaces...); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestEveryServiceAccountHasItsIdentity(t *testing.T) {
	prove(t, "identity", claims.EveryAccountHasItsIdentity)
}

func TestOnlyTheAuditorMayReadAccounts(t *testing.T) {
	prove(t, "access", claims.OnlyTheAuditorMayRead)
}

func TestTheWireIsTLS13FromBothSides(t *testing.T) {
	prove(t, "wire", claims.TheWireIsTLS13)
}

func TestStrangersAreRefusedUnderStrict(t *testing.T) {
	prove(t, "strangers", claims.StrangersAreRefused)
}

func TestImpostorBehindServiceAddressIsRefused(t *testing.T) {
	prove(t, "impostor", claims.AnImpostorIsRefused)
}

func TestCertificatesRotateWithoutAFailedRequest(t *testing.T) {
	prove(t, "rotation", claims.CertificatesRotate)
}

func TestChangedPolicyIsEnforced(t *testing.T) {
	prove(t, "policy", claims.AChangedPolicyIsEnforced)
}

func TestAuditTrailHasEveryDecisionAlsoWhenMixerWasAway(t *testing.T) {
	prove(t, "audit", claims.TheAuditTrailIsComplete)
}

// collect writes the logs of all containers and the configuration of all proxies of some namespaces into artifacts/.
func collect(ctx context.Context, t *testing.T, namespaces ...string) {
	dir := filepath.Join("artifacts", t.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Log(err)
		return
	}
	save := func(name string, content []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o644)
		}
		if err != nil {
			t.Logf("collecting %s: %v", name, err)
		}
	}
	for _, namespace := range namespaces {
		pods, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Log(err)
			continue
		}
		for _, pod := range pods.Items {
			for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
				content, err := cluster.CoreV1().Pods(namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: c.Name}).DoRaw(ctx)
				save(strings.Join([]string{namespace, pod.Name, c.Name, "log"}, "."), content, err)
			}
			if app := pod.Labels["app"]; app != "" && namespace != mesh.Namespace && !strings.HasSuffix(namespace, "-outside") {
				container := pod.Spec.Containers[0].Name
				content, err := cluster.Exec(ctx, namespace, app, container, "sample", "get", "http://127.0.0.1:15000/config_dump")
				save(strings.Join([]string{namespace, pod.Name, "config_dump", "json"}, "."), content, err)
			}
		}
	}
	if out, err := cluster.Meshctl(ctx, "status"); err == nil {
		save("status.txt", out, nil)
	}
	t.Logf("logs and configuration are in e2e/%s", dir)
}
