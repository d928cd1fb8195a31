package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Namespaces that enforce a profile of the Pod Security Standards take a workload with a proxy as they take it without one, whoever
// it runs as, and it is protected there.
func TestPodsNeedNoPrivilege(t *testing.T) {
	prove(t, "profiles", func(ctx context.Context, s *claims.Scene) (string, error) {
		const restricted, baseline = "e2e-profiles-restricted", "e2e-profiles-baseline"
		cleanUp(t, restricted, baseline)
		users := map[string]string{
			restricted: `{runAsNonRoot: true, runAsUser: 1000660000, runAsGroup: 1338, seccompProfile: {type: RuntimeDefault}}`,
			baseline:   `{runAsUser: 0}`,
		}
		for namespace, user := range users {
			manifest := strings.NewReplacer("NAMESPACE", namespace, "LEVEL", strings.TrimPrefix(namespace, "e2e-profiles-"), "USER", user, "TAG", s.Tag).Replace(profiled)
			if err := s.Apply(ctx, manifest); err != nil {
				return "", err
			}
		}
		for namespace := range users {
			if err := s.Ready(ctx, namespace, 2*time.Minute); err != nil {
				return "", err
			}
			pod, err := s.Pod(ctx, namespace, "web")
			if err != nil {
				return "", err
			}
			i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == mesh.RedirectContainer })
			if security := pod.Spec.InitContainers[i].SecurityContext; len(security.Capabilities.Add) > 0 || *security.RunAsUser == 0 {
				return "", fmt.Errorf("the init container has a privilege: %+v", security)
			}
			plain, err := lab.ExecJSON[sample.Response](ctx, s.Lab, s.Outside, "stranger", "client", "sample", "get", "http://"+pod.Status.PodIP+":8080/")
			if err != nil {
				return "", err
			}
			if plain.Error == "" {
				return "", fmt.Errorf("in %s, a stranger's plaintext was answered under STRICT: %+v", namespace, plain)
			}
			inside, err := s.Get(ctx, "web", "http://web."+namespace+"/")
			if err != nil || inside.Status != 200 {
				return "", fmt.Errorf("in %s, a pod of the mesh got %+v, %v", namespace, inside, err)
			}
		}
		return "restricted and baseline: ready, and protected", nil
	})
}

const profiled = `
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE, labels: {istio-injection: enabled, pod-security.kubernetes.io/enforce: LEVEL}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: NAMESPACE}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: USER
      containers:
        - name: app
          image: docker.io/bulwark/sample:TAG
          imagePullPolicy: IfNotPresent
          args: [server, --name=web]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// Where the plugin is not, a pod with a proxy waits before it has a network, says why, and starts when the plugin is there. Pods
// without a proxy start. A pod that has got past that proves by itself that nobody redirects it, and ends.
func TestAPodWithoutThePluginDoesNotStart(t *testing.T) {
	prove(t, "waiting", func(ctx context.Context, s *claims.Scene) (string, error) {
		dirs := openDirs(t, s.Lab)
		keepers, err := s.Component(ctx, "cni")
		if err != nil {
			return "", err
		}
		node := keepers[0].Spec.NodeName
		if err := withoutKeeperOn(ctx, s.Lab, node); err != nil {
			return "", err
		}
		defer func() { _ = withKeepers(context.WithoutCancel(ctx), s.Lab) }()
		for _, d := range dirs { // as in an upgrade, where a keeper ends and its DaemonSet is there
			if err := d.clean(); err == nil {
				return "", errors.New("a keeper that ends has taken the plugin off its node")
			}
		}
		client := func(namespace, name string, labels map[string]string) error {
			yes, no := true, false
			_, err := s.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
				Spec: corev1.PodSpec{
					NodeName: node, TerminationGracePeriodSeconds: new(int64),
					SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
					Containers: []corev1.Container{{Name: "client", Image: "docker.io/bulwark/sample:" + s.Tag, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"wait"},
						SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}},
				},
			}, metav1.CreateOptions{})
			return err
		}
		if err := client(s.Namespace, "waits", nil); err != nil {
			return "", err
		}
		if err := client(s.Outside, "plain", nil); err != nil {
			return "", err
		}
		running := func(namespace, name string) func(context.Context) error {
			return func(ctx context.Context) error {
				pod, err := s.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
				if err == nil && pod.Status.Phase != corev1.PodRunning {
					err = fmt.Errorf("pod %s/%s is %s", namespace, name, pod.Status.Phase)
				}
				return err
			}
		}
		if err := lab.PollFor(ctx, time.Minute, running(s.Outside, "plain")); err != nil {
			return "", fmt.Errorf("a pod without a proxy: %w", err)
		}
		if err := lab.PollFor(ctx, time.Minute, said(s.Lab, s.Namespace, "waits", "the pod waits for bulwark-cni", "on node "+node)); err != nil {
			return "", err
		}
		if err := running(s.Namespace, "waits")(ctx); err == nil {
			return "", errors.New("a pod with a proxy runs without the plugin")
		}
		if err := withKeepers(ctx, s.Lab); err != nil {
			return "", err
		}
		healed := time.Now()
		if err := lab.PollFor(ctx, 2*time.Minute, running(s.Namespace, "waits")); err != nil {
			return "", err
		}
		took := time.Since(healed)
		return fmt.Sprintf("the pod waited, and ran %.1f s after the plugin was there", took.Seconds()), provesNothing(ctx, s)
	})
}

// provesNothing runs the proof in a pod that nobody redirects.
func provesNothing(ctx context.Context, s *claims.Scene) error {
	web, err := s.Pod(ctx, s.Namespace, "web")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(web.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == mesh.RedirectContainer })
	proof := web.Spec.InitContainers[i]
	proof.VolumeMounts = nil
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "unredirected"}, Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{proof}}}
	if _, err := s.CoreV1().Pods(s.Outside).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return err
	}
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		pod, err := s.CoreV1().Pods(s.Outside).Get(ctx, "unredirected", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].State.Terminated == nil {
			return errors.New("the proof has not ended")
		}
		end := pod.Status.ContainerStatuses[0].State.Terminated
		if end.ExitCode == 0 || !strings.Contains(end.Message, "has not redirected this pod's traffic") || !strings.Contains(end.Message, "delete the pod") {
			return fmt.Errorf("without redirection the proof ends with %d: %s", end.ExitCode, end.Message)
		}
		return nil
	})
}

// said looks for an Event of a pod that says all texts.
func said(l *lab.Lab, namespace, pod string, texts ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		events, err := l.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
		if err != nil {
			return err
		}
		var messages []string
		for _, e := range events.Items {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(e.Message, text) }) {
				return nil
			}
			messages = append(messages, e.Message)
		}
		return fmt.Errorf("no Event of pod %s says %q: %q", pod, texts, messages)
	}
}

// withoutKeeperOn keeps the DaemonSet off a node.
func withoutKeeperOn(ctx context.Context, l *lab.Lab, node string) error {
	err := affinity(ctx, l, fmt.Sprintf(`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"NotIn","values":[%q]}]}]}}}`, node))
	if err != nil {
		return err
	}
	// Until it has ended, not only been told to: what it does last is looked at.
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		keepers, err := l.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=cni", FieldSelector: "spec.nodeName=" + node})
		if err == nil && len(keepers.Items) > 0 {
			err = fmt.Errorf("the keeper of %s is still there", node)
		}
		return err
	})
}

// withKeepers lets the DaemonSet be everywhere again, and waits for that.
func withKeepers(ctx context.Context, l *lab.Lab) error {
	if err := affinity(ctx, l, "null"); err != nil {
		return err
	}
	return keepersReady(ctx, l)
}

func keepersReady(ctx context.Context, l *lab.Lab) error {
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		d, err := l.AppsV1().DaemonSets(mesh.Namespace).Get(ctx, mesh.CNIPlugin, metav1.GetOptions{})
		if err == nil && (d.Status.ObservedGeneration < d.Generation || d.Status.NumberReady < d.Status.DesiredNumberScheduled || d.Status.UpdatedNumberScheduled < d.Status.DesiredNumberScheduled) {
			err = fmt.Errorf("%d of %d keepers are ready", d.Status.NumberReady, d.Status.DesiredNumberScheduled)
		}
		return err
	})
}

func affinity(ctx context.Context, l *lab.Lab, json string) error {
	_, err := l.AppsV1().DaemonSets(mesh.Namespace).Patch(ctx, mesh.CNIPlugin, types.MergePatchType, []byte(`{"spec":{"template":{"spec":{"affinity":`+json+`}}}}`), metav1.PatchOptions{})
	return err
}

// nodeDirs are a node's directories of CNI, as this machine sees them; they can be looked at when nothing of Bulwark is there.
type nodeDirs struct{ conf, bin *os.Root }

// openDirs returns those of all nodes, none on a cluster whose containers do not run on this machine.
func openDirs(t *testing.T, l *lab.Lab) []nodeDirs {
	t.Helper()
	keepers, err := l.Component(t.Context(), "cni")
	if err != nil || len(keepers) == 0 {
		t.Fatalf("keepers of the plugin: %d, %v", len(keepers), err)
	}
	var all []nodeDirs
	for _, keeper := range keepers {
		root, err := l.ContainerRoot(&keeper, "cni")
		if errors.Is(err, lab.ErrElsewhere) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		open := func(dir string) *os.Root {
			r, err := os.OpenRoot(filepath.Join(root, "host", dir))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			return r
		}
		all = append(all, nodeDirs{open("conf"), open("bin")})
	}
	return all
}

// files are the configurations by name, and the plugins by name alone.
func (d nodeDirs) files() (map[string]string, error) {
	out := map[string]string{}
	for _, root := range []*os.Root{d.conf, d.bin} {
		entries, err := fs.ReadDir(root.FS(), ".")
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			out[e.Name()] = ""
			if root == d.conf && e.Type().IsRegular() {
				content, err := root.ReadFile(e.Name())
				if err != nil {
					return nil, err
				}
				out[e.Name()] = string(content)
			}
		}
	}
	return out, nil
}

// clean fails if anything of the plugin is there.
func (d nodeDirs) clean() error {
	files, err := d.files()
	if err != nil {
		return err
	}
	for name, content := range files {
		if strings.Contains(name+content, "bulwark-cni") || strings.Contains(name, "before-bulwark") {
			return fmt.Errorf("%s is left, with %q", name, content)
		}
	}
	return nil
}

// chained waits until the plugin is the last of a configuration, and returns it.
func (d nodeDirs) chained(ctx context.Context, name string) (string, error) {
	var text string
	return text, lab.PollFor(ctx, 30*time.Second, func(context.Context) error {
		content, err := d.conf.ReadFile(name)
		if err != nil {
			return err
		}
		text = string(content)
		var list struct {
			Plugins []struct{ Type string }
		}
		if err := json.Unmarshal(content, &list); err != nil {
			return err
		}
		if n := len(list.Plugins); n < 2 || list.Plugins[n-1].Type != mesh.CNIPlugin {
			return fmt.Errorf("the plugins of %s are %v", name, list.Plugins)
		}
		return nil
	})
}

// What the cluster's own network program does: it writes its configuration anew, or another becomes the first.
func TestAReplacedCNIConfigurationIsChainedAgain(t *testing.T) {
	dirs := openDirs(t, cluster)
	if len(dirs) == 0 {
		t.Skip(lab.ErrElsewhere)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	entries, err := fs.Glob(dirs[0].conf.FS(), "*.conflist")
	if err != nil || len(entries) == 0 {
		t.Fatalf("configurations of the node: %v, %v", entries, err)
	}
	name, other := entries[0], "00-other.conflist"
	with, err := dirs[0].chained(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	start := strings.Index(with, `{"type": "bulwark-cni"`)
	original := strings.TrimRight(with[:start], " \n,") + with[start+strings.Index(with[start:], "}}")+2:]
	if err := dirs[0].conf.WriteFile(name, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	if again, err := dirs[0].chained(ctx, name); err != nil || again != with {
		t.Fatalf("replaced: %v\n%s\nwas\n%s", err, again, with)
	}
	if err := dirs[0].conf.WriteFile(other, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dirs[0].conf.Remove(other) }()
	if _, err := dirs[0].chained(ctx, other); err != nil {
		t.Fatalf("a new first one: %v", err)
	}
	err = lab.PollFor(ctx, 30*time.Second, func(context.Context) error {
		content, err := dirs[0].conf.ReadFile(name)
		if err == nil && string(content) != original {
			err = fmt.Errorf("the second is not as it was:\n%s", content)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := dirs[0].conf.Remove(other); err != nil {
		t.Fatal(err)
	}
	if again, err := dirs[0].chained(ctx, name); err != nil || again != with {
		t.Fatalf("the first one again: %v\n%s\nwas\n%s", err, again, with)
	}
	if err := dirs[0].bin.Remove(mesh.CNIPlugin); err != nil {
		t.Fatal(err)
	}
	err = lab.PollFor(ctx, 30*time.Second, func(context.Context) error {
		_, err := dirs[0].bin.Stat(mesh.CNIPlugin)
		return err
	})
	if err != nil {
		t.Errorf("the program: %v", err)
	}
	if err := keepersReady(ctx, cluster); err != nil {
		t.Error(err)
	}
}

// The other way stays, and the way can be changed: pods go on as they are, and new ones come as it is then. An upgrade leaves the
// plugin in place, and turning it off leaves the nodes as they were.
func TestTheInitContainersWayAndBack(t *testing.T) {
	dirs := openDirs(t, cluster)
	proveFor(t, "ways", 8*time.Minute, func(ctx context.Context, s *claims.Scene) (happened string, err error) {
		defer func() { err = errors.Join(err, s.Install(context.WithoutCancel(ctx), os.Stdout)) }()
		enforced := func(when string) error {
			if _, err := claims.OnlyTheAuditorMayRead(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", when, err)
			}
			return nil
		}
		if err := enforced("with the plugin"); err != nil {
			return "", err
		}
		if err := s.Install(ctx, os.Stdout, "cni=off"); err != nil {
			return "", err
		}
		for _, d := range dirs {
			if err := lab.PollFor(ctx, time.Minute, func(context.Context) error { return d.clean() }); err != nil {
				return "", fmt.Errorf("turned off: %w", err)
			}
		}
		if err := enforced("turned off, for pods of before"); err != nil {
			return "", err
		}
		for _, app := range []string{"payroll", "web"} {
			pod, err := s.Pod(ctx, s.Namespace, app)
			if err != nil {
				return "", err
			}
			if err := s.CoreV1().Pods(s.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
				return "", err
			}
			err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
				now, err := s.Pod(ctx, s.Namespace, app)
				if err == nil && now.UID == pod.UID {
					err = fmt.Errorf("pod %s is still there", pod.Name)
				}
				return err
			})
			if err != nil {
				return "", err
			}
		}
		if err := s.Ready(ctx, s.Namespace, 2*time.Minute); err != nil {
			return "", err
		}
		pod, err := s.Pod(ctx, s.Namespace, "payroll")
		if err != nil {
			return "", err
		}
		if pod.Annotations[mesh.RedirectAnnotation] != "" || !slices.Contains(pod.Spec.InitContainers[0].SecurityContext.Capabilities.Add, "NET_ADMIN") {
			return "", fmt.Errorf("the new pod's init container: %+v", pod.Spec.InitContainers[0].SecurityContext)
		}
		if err := enforced("turned off, for new pods"); err != nil {
			return "", err
		}
		if err := s.Install(ctx, os.Stdout, "cni=on"); err != nil {
			return "", err
		}
		if err := enforced("turned on, for pods of before"); err != nil {
			return "", err
		}
		return "verdicts are the policy's with either way, for pods of before and new ones", nil
	}, "pod-security.kubernetes.io/enforce: privileged")
}
