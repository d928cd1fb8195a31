package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The tests of installing come last, as they take the mesh away. They leave it installed, and every sample removed.
func TestUninstallLeavesNothingAndAFailedInstallCanBeRunAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dirs := openDirs(t, cluster)
	scene, err := claims.Deploy(ctx, cluster, "e2e-uninstall")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cluster.Meshctl(ctx, "uninstall", "--yes")
	if err == nil || !strings.Contains(err.Error(), scene.Namespace) || !strings.Contains(err.Error(), "istio-injection-") {
		t.Fatalf("with pods in the mesh: %v, want a refusal that names their namespace and what to do\n%s", err, out)
	}
	if err := removeSamples(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := cluster.Meshctl(ctx, "uninstall", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, d := range dirs {
		if err := d.clean(); err != nil {
			t.Errorf("on a node: %v", err)
		}
	}
	err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		left, err := leftovers(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(left, ", "))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	// In a namespace that has just been made again, a pod may come only after a quarter of a minute.
	out, err = cluster.Meshctl(ctx, "install", "--set", "image.tag=no-such-tag", "--set", "image.pullPolicy=Never", "--timeout=40s")
	if err == nil || !strings.Contains(err.Error(), "ErrImageNeverPull") || !strings.Contains(err.Error(), "meshctl install") {
		t.Fatalf("installing what is not there: %v, want the reason and what to do\n%s", err, out)
	}
	var log strings.Builder
	if err := cluster.Install(ctx, &log); err != nil {
		t.Fatalf("running it again: %v\n%s", err, &log)
	}
	if out, err := cluster.Meshctl(ctx, "verify"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// removeSamples deletes the namespaces of the tests and of the demo, and waits until they are gone.
func removeSamples(ctx context.Context) error {
	return lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
		namespaces, err := cluster.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var left []string
		for _, n := range namespaces.Items {
			if strings.HasPrefix(n.Name, "e2e-") || n.Name == "finance" || n.Name == "finance-outside" {
				left = append(left, n.Name)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if err := cluster.DeleteNamespaces(ctx, left...); err != nil {
			return err
		}
		return fmt.Errorf("namespaces %s are still there", strings.Join(left, ", "))
	})
}

// leftovers lists every object in the cluster, of every kind, that is Bulwark's by label, name or type.
func leftovers(ctx context.Context) ([]string, error) {
	_, lists, err := cluster.Discovery().ServerGroupsAndResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, err
	}
	var left []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") || !strings.Contains(strings.Join(r.Verbs, " "), "list") || r.Kind == "Event" {
				continue
			}
			objects, err := cluster.List(ctx, gv.WithResource(r.Name))
			if meta.IsNoMatchError(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("listing %s: %w", gv.WithResource(r.Name), err)
			}
			for _, o := range objects {
				ours := o.GetLabels()[mesh.PartOfLabel] == mesh.PartOfValue || o.GetNamespace() == mesh.Namespace || o.GetName() == mesh.Namespace ||
					o.GetName() == mesh.TrustBundleConfig || strings.HasSuffix(o.GetName(), ".istio.io") || o.Object["type"] == mesh.SecretType
				if ours && r.Kind != "PersistentVolume" {
					left = append(left, fmt.Sprintf("%s %s/%s", r.Kind, o.GetNamespace(), o.GetName()))
				}
			}
		}
	}
	return left, nil
}

// Who installs with Helm is told as much as by meshctl: the commands of the documentation install, what a component would refuse
// and another trust domain change nothing, and what changes is said.
func TestHelm(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := removeSamples(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := cluster.Meshctl(ctx, "uninstall", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer func() {
		var log strings.Builder
		if err := cluster.Install(ctx, &log); err != nil {
			t.Errorf("installing with meshctl again: %v\n%s", err, &log)
		}
	}()
	all, err := blocks()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(b fenced) bool { return strings.Contains(b.text, "helm upgrade --install") })
	if i < 0 {
		t.Fatal("the documentation does not say how to install with Helm")
	}
	block := all[i].text
	upgrade := strings.TrimSpace(block[strings.Index(block, "helm upgrade"):])
	// helm runs the documented upgrade with further flags, or with the whole block before it.
	helm := func(block, flags string) (string, error) {
		cmd := exec.CommandContext(ctx, "sh", "-euc", strings.TrimSpace(block)+" --set image.tag="+*tag+" "+flags)
		cmd.Dir = ".."
		bin, err := filepath.Abs("../bin")
		if err != nil {
			return "", err
		}
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := helm(block, "--set mtls=strict,citadel.workloadTTL=1h --timeout 2m"); err != nil {
		t.Fatalf("as the documentation says: %v\n%s", err, out)
	}
	dirs := openDirs(t, cluster)
	defer func() {
		out, err := helm("helm uninstall bulwark --namespace bulwark-system --wait #", "")
		for _, d := range dirs {
			if err == nil { // the keepers end a little later than their DaemonSet
				err = lab.PollFor(ctx, time.Minute, func(context.Context) error { return d.clean() })
			}
		}
		if err == nil {
			_, err = cluster.Meshctl(ctx, "uninstall", "--yes")
		}
		if err != nil {
			t.Errorf("uninstalling: %v\n%s", err, out)
		}
	}()
	if out, err := cluster.Meshctl(ctx, "verify"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	revision := func() int64 {
		d, err := cluster.AppsV1().Deployments(mesh.Namespace).Get(ctx, "bulwark-citadel", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d.Generation
	}
	before := revision()
	for flags, reason := range map[string]string{
		"--set trustDomain=other.example":             "cannot become other.example",
		"--set citadel.workloadTTL=1s":                "workloadTTL 1s is shorter than",
		"--set citadel.secrets.rotationMinimum=23h":   "rotation minimum",
		"--set mtls=maybe":                            "mtls",
		"--set citadel.workloadTLL=1h":                "workloadTLL",
		"--namespace default --set image.tag=" + *tag: "--namespace bulwark-system",
	} {
		if out, err := helm(upgrade, flags); err == nil || !strings.Contains(out, reason) {
			t.Errorf("%s: %v, want a refusal that says %q\n%s", flags, err, reason, out)
		}
	}
	if now := revision(); now != before {
		t.Errorf("what was refused has changed Citadel: generation %d, was %d", now, before)
	}
	changes := []string{"setting mtls: permissive, was strict", "takes plaintext again"}
	for _, flags := range []string{"--set mtls=permissive --dry-run=server", "--set mtls=permissive"} {
		out, err := helm(upgrade, flags)
		for _, text := range changes {
			if err != nil || !strings.Contains(out, text) {
				t.Errorf("%s: %v, want it to say %q\n%s", flags, err, text, out)
			}
		}
		if strings.Contains(out, "setting citadel.workloadTTL") {
			t.Errorf("%s: a setting that was not given is forgotten\n%s", flags, out)
		}
	}
}
