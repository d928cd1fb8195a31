package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The tests of installing come last, as they take the mesh away. They leave it installed.
func TestUninstallLeavesNothingAndAFailedInstallCanBeRunAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := cluster.Meshctl(ctx, "uninstall"); err != nil && !strings.Contains(err.Error(), "nothing was removed") {
		t.Fatalf("%v\n%s", err, out) // with no policy left there is nothing to ask
	}
	if out, err := cluster.Meshctl(ctx, "uninstall", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		left, err := leftovers(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(left, ", "))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	out, err := cluster.Meshctl(ctx, "install", "--set", "image.tag=no-such-tag", "--set", "image.pullPolicy=Never", "--timeout=15s")
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
					o.GetName() == mesh.TrustBundleConfig || strings.HasSuffix(o.GetName(), ".security.istio.io") || o.Object["type"] == mesh.SecretType
				if ours && r.Kind != "PersistentVolume" {
					left = append(left, fmt.Sprintf("%s %s/%s", r.Kind, o.GetNamespace(), o.GetName()))
				}
			}
		}
	}
	return left, nil
}
