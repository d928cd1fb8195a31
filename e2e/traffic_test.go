package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// onEachNode are a server that says its node's name, one that is never ready, one that is on a single node, a client on each node, and Services of the servers with the fields that
// kube-proxy honours.
const onEachNode = `
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: server, namespace: NS}, spec: {selector: {matchLabels: {app: server}}, template: {metadata: {labels: {app: server}}, spec: {
  terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [server, --name, $(NODE)],
  env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: unready, namespace: NS}, spec: {selector: {matchLabels: {app: unready}}, template: {metadata: {labels: {app: unready}}, spec: {
  terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [server, --name, $(NODE)],
  env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}], readinessProbe: {tcpSocket: {port: 1}}}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: single, namespace: NS}, spec: {selector: {matchLabels: {app: single}}, template: {metadata: {labels: {app: single}}, spec: {
  nodeSelector: {kubernetes.io/hostname: NODE1}, terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [server, --name, NODE1], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: client, namespace: NS}, spec: {selector: {matchLabels: {app: client}}, template: {metadata: {labels: {app: client}}, spec: {
  terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [wait]}]}}}}
---
`

// trafficServices have fields of Services by name.
var trafficServices = map[string]string{
	"plain":              "selector: {app: server}",
	"local":              "selector: {app: server}, internalTrafficPolicy: Local",
	"local-elsewhere":    "selector: {app: single}, internalTrafficPolicy: Local",
	"sticky":             "selector: {app: server}, sessionAffinity: ClientIP",
	"sticky-local":       "selector: {app: server}, sessionAffinity: ClientIP, internalTrafficPolicy: Local",
	"same-node":          "selector: {app: server}, trafficDistribution: PreferSameNode",
	"same-node-fallback": "selector: {app: single}, trafficDistribution: PreferSameNode",
	"same-zone":          "selector: {app: server}, trafficDistribution: PreferSameZone",
	"close":              "selector: {app: server}, trafficDistribution: PreferClose",
	"unready":            "selector: {app: unready}",
	"unready-published":  "selector: {app: unready}, publishNotReadyAddresses: true",
}

// TestServicesAreServedByWhomKubeProxyWouldChoose calls Services from a client on each node, in the mesh and in a namespace without proxies that is alike in all else: the same
// nodes answer.
func TestServicesAreServedByWhomKubeProxyWouldChoose(t *testing.T) {
	t.Parallel()
	const ns, out = "e2e-traffic", "e2e-traffic-outside"
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cleanUp(t, ns, out)
	nodes := inZones(ctx, t)
	if len(nodes) < 2 {
		t.Skip("the cluster has one node, and where clients are makes no difference")
	}
	objects := fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {mtls: {mode: STRICT}}}
---
`, ns, out)
	services := slices.Sorted(maps.Keys(trafficServices))
	for _, namespace := range []string{ns, out} {
		objects += strings.NewReplacer("NS", namespace, "TAG", *tag, "NODE1", nodes[0]).Replace(onEachNode)
		for _, name := range services {
			objects += fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {%s, ports: [{name: http, port: 8080}, {name: tcp-lines, port: 9000}]}}\n---\n",
				name, namespace, trafficServices[name])
		}
		objects += fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: %s}, spec: {selector: {app: unready}, publishNotReadyAddresses: true, clusterIP: None, ports: [{name: http, port: 8080}, {name: tcp-lines, port: 9000}]}}\n---\n", namespace)
	}
	if err := cluster.Apply(ctx, objects); err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{ns, out} {
		if err := lab.PollFor(ctx, 3*time.Minute, func(ctx context.Context) error { return allRun(ctx, namespace) }); err != nil {
			t.Fatal(err)
		}
	}
	// What Kubernetes writes into slices, and whoever follows it, takes a moment.
	err := lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
		want, err := answering(ctx, out, services, nodes)
		if err != nil {
			return err
		}
		for client, servers := range wanted(nodes) {
			if want[client] != servers {
				return fmt.Errorf("without proxies, %s has answers of %q, want %q", client, want[client], servers)
			}
		}
		got, err := answering(ctx, ns, services, nodes)
		if err != nil {
			return err
		}
		var wrong []error
		for _, client := range slices.Sorted(maps.Keys(want)) {
			if got[client] != want[client] {
				wrong = append(wrong, fmt.Errorf("%s has answers of %q, and without proxies of %q", client, got[client], want[client]))
			}
		}
		if len(wrong) == 0 {
			for _, client := range slices.Sorted(maps.Keys(want)) {
				t.Logf("%s: %s, with and without proxies", client, want[client])
			}
		}
		return errors.Join(wrong...)
	})
	if err != nil {
		t.Error(err)
	}
	// What docs/services.md tells scripts to wait for.
	for address, want := range map[string]bool{"plain:9000": true, "unready:9000": false, "unready-published:9000": true} {
		for _, namespace := range []string{ns, out} {
			if open, err := lab.ExecJSON[bool](ctx, cluster, namespace, "client", "app", "sample", "open", address); err != nil || open != want {
				t.Errorf("in %s, a connection to %s is still open after two seconds: %v, want %v; %v", namespace, address, open, want, err)
			}
		}
	}
}

// wanted are some rows of what kube-proxy does, so that a cluster which does nothing of it proves nothing.
func wanted(nodes []string) map[string]string {
	both := strings.Join(nodes, " ")
	return map[string]string{
		"http plain on " + nodes[0]: both, "tcp plain on " + nodes[1]: both, "http local on " + nodes[1]: nodes[1], "tcp local on " + nodes[0]: nodes[0],
		"http local-elsewhere on " + nodes[1]: "nobody", "http sticky on " + nodes[0]: "one of " + fmt.Sprint(len(nodes)), "http same-node on " + nodes[1]: nodes[1],
		"http same-zone on " + nodes[0]: nodes[0], "http unready on " + nodes[0]: "nobody", "http unready-published on " + nodes[0]: both, "tcp unready pod of " + nodes[1] + " on " + nodes[0]: nodes[1],
	}
}

// inZones has each node be in a zone of its own until the test ends, and returns the nodes' names.
func inZones(ctx context.Context, t *testing.T) (names []string) {
	t.Helper()
	list, err := cluster.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	label := func(ctx context.Context, node string, zone any) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{corev1.LabelTopologyZone: zone}}})
		if err == nil {
			_, err = cluster.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil {
			t.Error(err)
		}
	}
	for _, n := range list.Items {
		names = append(names, n.Name)
		if n.Labels[corev1.LabelTopologyZone] != "" {
			continue
		}
		label(ctx, n.Name, "zone-of-"+n.Name)
		t.Cleanup(func() { label(context.WithoutCancel(ctx), n.Name, nil) })
	}
	slices.Sort(names)
	return names
}

// allRun fails if a DaemonSet's pod does not run yet, or a pod is not ready that is to be.
func allRun(ctx context.Context, namespace string) error {
	sets, err := cluster.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range sets.Items {
		if s.Status.ObservedGeneration < s.Generation || s.Name != "unready" && (s.Status.DesiredNumberScheduled == 0 || s.Status.NumberReady < s.Status.DesiredNumberScheduled) {
			return fmt.Errorf("DaemonSet %s/%s: %d of %d pods are ready", namespace, s.Name, s.Status.NumberReady, s.Status.DesiredNumberScheduled)
		}
	}
	pods, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		if p.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("pod %s/%s is %s", namespace, p.Name, p.Status.Phase)
		}
	}
	return nil
}

// answering says of each client and Service which nodes' servers answer: by "protocol service on node".
func answering(ctx context.Context, namespace string, services, nodes []string) (map[string]string, error) {
	pods, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=client"})
	if err != nil {
		return nil, err
	}
	// Behind a headless Service a client chooses a pod by its address.
	targets := map[string]string{}
	for _, service := range services {
		targets[service] = service
	}
	unready, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=unready"})
	if err != nil {
		return nil, err
	}
	for _, p := range unready.Items {
		targets["unready pod of "+p.Spec.NodeName] = p.Status.PodIP
	}
	type row struct{ name, nodes string }
	rows := make(chan row, 2*len(pods.Items)*len(targets))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(6)
	for _, client := range pods.Items {
		for service, host := range targets {
			for _, protocol := range []string{"http", "tcp"} {
				g.Go(func() error {
					command := []string{"sample", "get", "http://" + host + ":8080/", "--count", "16"}
					if protocol == "tcp" {
						command = []string{"sample", "tcp", host + ":9000", "--count", "16"}
					}
					if service == "local-elsewhere" && client.Spec.NodeName != nodes[0] { // without proxies, each waits until its time is over
						command[len(command)-1] = "1"
					}
					text, err := cluster.ExecIn(ctx, &client, "app", command...)
					if err != nil {
						return err
					}
					seen, err := serversOf(text)
					if strings.HasPrefix(service, "sticky") && len(seen) == 1 && !strings.Contains(service, "local") { // which is not the same for every client
						seen = []string{"one of " + fmt.Sprint(len(nodes))}
					}
					rows <- row{protocol + " " + service + " on " + client.Spec.NodeName, strings.Join(seen, " ")}
					return err
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	close(rows)
	out := map[string]string{}
	for r := range rows {
		out[r.name] = r.nodes
	}
	return out, nil
}

// serversOf are the servers that have answered, in order, and "nobody" if some call was not answered.
func serversOf(text []byte) ([]string, error) {
	seen := map[string]bool{}
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		var r struct {
			Answer json.RawMessage `json:"answer"`
		}
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF):
			return slices.Sorted(maps.Keys(seen)), nil
		case err != nil:
			return nil, fmt.Errorf("%w in %q", err, text)
		}
		var request sample.Answer
		var line string
		switch {
		case r.Answer == nil:
			seen["nobody"] = true
		case json.Unmarshal(r.Answer, &request) == nil:
			seen[request.Server] = true
		default:
			if err := json.Unmarshal(r.Answer, &line); err != nil {
				return nil, fmt.Errorf("%w in %q", err, text)
			}
			server, _, _ := strings.Cut(line, ":")
			seen[server] = true
		}
	}
}

// TestAuthorsOfServicesAreWarned applies Services and reads what the API server says besides.
func TestAuthorsOfServicesAreWarned(t *testing.T) {
	t.Parallel()
	const ns = "e2e-advice"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	if err := cluster.Apply(ctx, "{apiVersion: v1, kind: Namespace, metadata: {name: "+ns+"}}"); err != nil {
		t.Fatal(err)
	}
	said := &warnings{}
	config := rest.CopyConfig(cluster.Config)
	config.WarningHandler = said
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "http", Port: 80}}, InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal)}}
	created, err := client.CoreV1().Services(ns).Create(ctx, service, metav1.CreateOptions{})
	if err != nil || len(said.texts) > 0 {
		t.Errorf("a Service that is honoured: %v, %q", err, said.texts)
	}
	// Whoever has just installed the mesh may be faster than the API server's informers of webhooks, which are forgiven when they are away.
	err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		said.texts = nil
		created.ResourceVersion = ""
		created.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}
		if _, err := client.CoreV1().Services(ns).Update(ctx, created, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if text := strings.Join(said.texts, "; "); !strings.Contains(text, "port 53 is UDP") {
			return fmt.Errorf("the author of a Service with a UDP port is told %q", text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%q", said.texts)
}

// warnings keeps what the API server warns of.
type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.texts = append(w.texts, text) }
