package applications

import (
	"context"
	"embed"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var (
	tag     = flag.String("tag", "dev", "tag of the mesh's images")
	image   = flag.String("image", "", "tag of the image of the programs; without it only what needs no cluster is tested")
	keep    = flag.Bool("keep", false, "leave the namespaces of the tests")
	cluster *lab.Lab
)

//go:embed testdata/*.yaml
var manifests embed.FS

// TestMain makes sure that the mesh is installed.
func TestMain(m *testing.M) {
	flag.Parse()
	if *image != "" {
		// More servers at once would starve two cores, and probes would fail.
		if err := flag.Set("test.parallel", "2"); err != nil {
			panic(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		var err error
		if cluster, err = lab.Open(*tag); err == nil {
			err = cluster.Install(ctx, os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "applications: no mesh to test:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// TestPrograms tries each program in three namespaces: without a mesh, where its self-test has to pass if it is worth anything; in the mesh; and in the mesh with Services
// that declare no protocol.
func TestPrograms(t *testing.T) {
	if *image == "" {
		t.Skip("no -image: make applications builds it")
	}
	for _, p := range Programs {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
			defer cancel()
			try(ctx, t, p)
		})
	}
}

// world is a namespace with a program in it.
type world struct {
	program   Program
	namespace string
	meshed    bool
	declared  bool
}

func try(ctx context.Context, t *testing.T, p Program) {
	plain := world{p, "app-" + p.Name + "-plain", false, true}
	declared := world{p, "app-" + p.Name + "-declared", true, true}
	undeclared := world{p, "app-" + p.Name + "-undeclared", true, false}
	worlds := []world{plain, declared, undeclared}
	cleanUp(ctx, t, worlds)
	start := time.Now()
	var all errgroup.Group
	for _, w := range worlds {
		all.Go(func() error { return w.deploy(ctx) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("deployed in %s", time.Since(start).Round(time.Second))
	if err := plain.selfTest(ctx); err != nil {
		t.Fatalf("without a mesh, so the test is wrong: %v", err)
	}
	if err := declared.selfTest(ctx); err != nil {
		t.Errorf("in the mesh: %v", err)
	}
	declared.refuses(ctx, t, plain)
	switch err := undeclared.selfTest(ctx); {
	case p.Undeclared == "" && err != nil:
		t.Errorf("in the mesh, no protocol declared: %v", err)
	case p.Undeclared != "" && (err == nil || !regexp.MustCompile(p.Undeclared).MatchString(err.Error())):
		t.Errorf("in the mesh, no protocol declared: %v, want an error that says %q: correct docs/applications.md", err, p.Undeclared)
	}
	t.Logf("all in %s", time.Since(start).Round(time.Second))
}

// deploy applies the program and those who call it, and waits until all are ready and the program's cluster has formed.
func (w world) deploy(ctx context.Context) error {
	labels := "{}"
	if w.meshed {
		labels = "{istio-injection: enabled}"
	}
	parts := []string{fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: NAMESPACE, labels: %s}}", labels),
		"{apiVersion: v1, kind: ServiceAccount, metadata: {name: server, namespace: NAMESPACE}}"}
	files := []string{"callers", w.program.Name}
	if w.meshed {
		files = append([]string{"strict"}, files...)
	}
	for _, name := range files {
		content, err := manifests.ReadFile("testdata/" + name + ".yaml")
		if err != nil {
			return err
		}
		parts = append(parts, string(content))
	}
	manifest := strings.NewReplacer("NAMESPACE", w.namespace, "IMAGE", "docker.io/bulwark/applications:"+*image, "ENVOY", "docker.io/bulwark/proxy:"+*tag).
		Replace(strings.Join(parts, "\n---\n"))
	if !w.declared {
		var err error
		if manifest, err = undeclare(manifest); err != nil {
			return err
		}
	}
	if err := cluster.Apply(ctx, manifest); err != nil {
		return fmt.Errorf("deploying %s: %w", w.namespace, err)
	}
	return cluster.Ready(ctx, w.namespace, 4*time.Minute)
}

// undeclare takes from the Services of a manifest what says which protocol a port speaks.
func undeclare(manifest string) (string, error) {
	documents := strings.Split(manifest, "\n---\n")
	for i, document := range documents {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			return "", fmt.Errorf("reading a manifest: %w", err)
		}
		if object["kind"] != "Service" {
			continue
		}
		for _, port := range object["spec"].(map[string]any)["ports"].([]any) {
			port := port.(map[string]any)
			delete(port, "appProtocol")
			port["name"] = fmt.Sprintf("port-%v", port["port"])
		}
		content, err := yaml.Marshal(object)
		if err != nil {
			return "", err
		}
		documents[i] = string(content)
	}
	return strings.Join(documents, "\n---\n"), nil
}

// selfTest waits until the program's cluster has formed, and then runs the client's test, once, and what the server is asked.
func (w world) selfTest(ctx context.Context) error {
	if w.program.Form != "" {
		err := lab.PollFor(ctx, 90*time.Second, func(ctx context.Context) error { return w.run(ctx, "client", "", w.program.Form) })
		if err != nil {
			return fmt.Errorf("it has not formed: %w", err)
		}
	}
	if err := w.run(ctx, "client", "", w.program.Test); err != nil {
		return err
	}
	for _, c := range w.program.Server {
		if out, err := cluster.Exec(ctx, w.namespace, c.App, c.Container, "bash", "-eo", "pipefail", "-c", c.Script); err != nil {
			return fmt.Errorf("asking the server: %w (%s)", err, out)
		}
	}
	return nil
}

// refuses shows that the client is admitted for its identity: the same call by a stranger of the mesh, and from without, does not succeed.
func (w world) refuses(ctx context.Context, t *testing.T, outside world) {
	t.Helper()
	if err := w.run(ctx, "client", "."+w.namespace, w.program.Ask); err != nil {
		t.Errorf("the client's call: %v", err)
	}
	for _, caller := range []struct {
		who string
		world
		app string
	}{{"a stranger of the mesh", w, "stranger"}, {"a pod outside of the mesh", outside, "client"}} {
		err := caller.run(ctx, caller.app, "."+w.namespace, w.program.Ask)
		if err == nil {
			t.Errorf("%s was answered", caller.who)
		} else {
			t.Logf("%s: %.300s", caller.who, err)
		}
	}
}

// run runs a script in the pod of an app. The error has what it printed.
func (w world) run(ctx context.Context, app, at, script string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	out, err := cluster.Exec(ctx, w.namespace, app, app, "env", "AT="+at, "bash", "-exo", "pipefail", "-c", script)
	if err != nil {
		return fmt.Errorf("%w\nit printed: %s", err, out)
	}
	return nil
}

// cleanUp removes what a run that was killed has left, and the namespaces at the end of the test; what pods of a test that failed have logged is kept.
func cleanUp(ctx context.Context, t *testing.T, worlds []world) {
	t.Helper()
	var names []string
	for _, w := range worlds {
		names = append(names, w.namespace)
	}
	if err := cluster.RemoveNamespaces(ctx, names...); err != nil {
		t.Fatalf("removing what an earlier run has left: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			if err := collect(ctx, "../artifacts/"+t.Name(), append(slices.Clone(names), mesh.Namespace)...); err != nil {
				t.Log(err)
			}
		}
		if !*keep {
			// Waited for, as the next program needs the room.
			if err := cluster.RemoveNamespaces(ctx, names...); err != nil {
				t.Error(err)
			}
		}
	})
}
