// Command demo installs Bulwark into the cluster of KUBECONFIG, deploys the sample and tries each of Bulwark's claims.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// namespace of the demo's sample, as its manifest has it.
const namespace = "finance"

func main() {
	down := flag.Bool("down", false, "remove the sample and Bulwark from the cluster")
	tag := flag.String("tag", "dev", "tag of the images")
	registry := flag.String("registry", "", "registry of the images, for a cluster that pulls them")
	limit := flag.Duration("timeout", 10*time.Minute, "limit of the whole demo")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	l, err := lab.Open(*tag)
	if err == nil && *down {
		err = remove(ctx, l)
	} else if err == nil {
		err = demo(ctx, l, *registry)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func remove(ctx context.Context, l *lab.Lab) error {
	if err := (&claims.Scene{Lab: l, Namespace: namespace, Outside: namespace + "-outside"}).Remove(ctx); err != nil {
		return err
	}
	return l.MeshctlTo(ctx, os.Stdout, "uninstall", "--yes")
}

func demo(ctx context.Context, l *lab.Lab, registry string) error {
	began := time.Now()
	fmt.Println("meshctl install")
	var set []string
	if registry != "" {
		set = append(set, "image.registry="+registry)
	}
	if err := l.Install(ctx, os.Stdout, set...); err != nil {
		return err
	}
	fmt.Printf("sample, in namespace %s\n", namespace)
	deployed := time.Now()
	var labels []string
	if _, err := l.AppsV1().DaemonSets(mesh.Namespace).Get(ctx, mesh.CNIPlugin, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		fmt.Println("  without the CNI plugin (see above) pods need NET_ADMIN, so the namespace does not enforce the profile restricted")
		labels = append(labels, "pod-security.kubernetes.io/enforce: privileged")
	}
	scene, err := claims.Deploy(ctx, l, namespace, labels...)
	if err != nil {
		return err
	}
	fmt.Printf("  ready %24s %5.1f s\nclaims\n", "", time.Since(deployed).Seconds())
	results := try(ctx, scene)
	failed := 0
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tCLAIM\tTRIED\tHAPPENED\t")
	for _, r := range results {
		verdict := "PASS"
		if r.err != nil {
			verdict = "FAIL"
			r.happened = r.err.Error()
			failed++
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\n", r.claim.Number, r.claim.Title, r.claim.Tried, r.happened, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("\n%d passed, %d failed in %.0f s\n", len(results)-failed, failed, time.Since(began).Seconds())
	howToGoOn()
	if failed > 0 {
		return fmt.Errorf("%d of %d claims do not hold", failed, len(results))
	}
	return nil
}

type result struct {
	claim    claims.Claim
	happened string
	err      error
}

// try runs the claims. Rotation takes the life of a certificate and goes on beside the others. The impostor spoils
// payroll's address for a while, so it comes when nothing else uses that.
func try(ctx context.Context, scene *claims.Scene) []result {
	results := make([]result, len(claims.All))
	run := func(number int) {
		claim := claims.All[number-1]
		began := time.Now()
		happened, err := claim.Run(ctx, scene)
		state := "ok"
		if err != nil {
			state = "FAILED"
		}
		fmt.Printf("  %2d %-44s %-6s %5.1f s\n", number, claim.Title, state, time.Since(began).Seconds())
		results[number-1] = result{claim, happened, err}
	}
	var rotation sync.WaitGroup
	rotation.Go(func() { run(6) })
	for _, number := range []int{1, 2, 3, 4, 7, 9, 8, 10} {
		run(number)
	}
	rotation.Wait()
	run(5)
	return results
}

func howToGoOn() {
	kubeconfig := os.Getenv("KUBECONFIG")
	bin := "bin"
	if dir, err := filepath.Abs("bin"); err == nil {
		bin = dir
	}
	fmt.Printf(`
To look around:
  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl -n finance get pods,peerauthentications,authorizationpolicies
  meshctl status
  meshctl identity -n finance deploy/payroll
  meshctl audit tail -n finance -f
  meshctl dashboard          then open http://127.0.0.1:15080/
To stop:
  make demo-down
`, kubeconfig, bin)
}
