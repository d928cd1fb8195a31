package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// ending is a server that goes on serving for a while after it is told to end, and whose successor takes a while to be ready.
const ending = `
{apiVersion: apps/v1, kind: Deployment, metadata: {name: single, namespace: NS}, spec: {selector: {matchLabels: {app: single}}, template: {metadata: {labels: {app: single}}, spec: {
  terminationGracePeriodSeconds: 150, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [server], lifecycle: {preStop: {sleep: {seconds: 120}}},
  readinessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 8, periodSeconds: 1}}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: client, namespace: NS}, spec: {selector: {matchLabels: {app: client}}, template: {metadata: {labels: {app: client}}, spec: {
  terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [wait]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: single, namespace: NS}, spec: {selector: {app: single}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-lines, port: 9000}]}}
---
`

// TestThePodThatEndsServesUntilItsSuccessorIsReady deletes the only pod of a Service under load: as without proxies no request fails, for the pod serves while it ends.
func TestThePodThatEndsServesUntilItsSuccessorIsReady(t *testing.T) {
	t.Parallel()
	const ns = "e2e-ending"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	err := cluster.Apply(ctx, strings.NewReplacer("NS", ns, "TAG", *tag).Replace(`
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {istio-injection: enabled}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: NS}, spec: {mtls: {mode: STRICT}}}
---
`+ending))
	if err == nil {
		err = reachable(ctx, ns, 3*time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	loads := [][]string{
		{"sample", "load", "http://single/"}, {"sample", "load", "http://single/", "--new-connections"}, {"sample", "tcpload", "single:9000", "--new-connections"},
	}
	results := make([]sample.LoadResult, len(loads))
	began := make(chan struct{}, len(loads))
	stdin := make([]io.Reader, len(loads)) // of which the end is the load's
	var ends []io.Closer
	for i := range loads {
		r, w := io.Pipe()
		stdin[i], ends = r, append(ends, w)
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, command := range loads {
		g.Go(func() error {
			out := &attended{began: began}
			command = append(command, "--attended", "--duration", "3m", "--interval", "50ms")
			if err := cluster.ExecAttended(gctx, stdin[i], out, ns, "client", "app", command...); err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(out.text.String()), "\n") // changes, and then the result
			return json.Unmarshal([]byte(lines[len(lines)-1]), &results[i])
		})
	}
	for range loads {
		select {
		case <-began:
		case <-gctx.Done():
			t.Fatal(g.Wait())
		}
	}
	pod, err := cluster.Pod(ctx, ns, "single")
	if err == nil {
		err = cluster.CoreV1().Pods(ns).Delete(ctx, pod.Name, metav1.DeleteOptions{})
	}
	if err == nil {
		err = lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
			if successor, err := cluster.Pod(ctx, ns, "single"); err != nil || successor.UID == pod.UID {
				return fmt.Errorf("the pod has no successor: %w", err)
			}
			return reachable(ctx, ns, time.Second)
		})
	}
	if err == nil { // as long as the old pod is there, it is no matter whom a proxy calls that is late
		_, err = cluster.CoreV1().Pods(ns).Get(ctx, pod.Name, metav1.GetOptions{})
	}
	for _, end := range ends {
		err = errors.Join(err, end.Close())
	}
	if err = errors.Join(err, g.Wait()); err != nil {
		t.Fatal(err)
	}
	_ = cluster.CoreV1().Pods(ns).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}) // nobody needs it any more
	for i, r := range results {
		if r.Requests == 0 || r.Outcomes["200"] != r.Requests {
			t.Errorf("%s: %d requests: %v %q, changes %v", strings.Join(loads[i], " "), r.Requests, r.Outcomes, r.Errors, r.Changes)
		} else {
			t.Logf("%s: %d requests, %v", strings.Join(loads[i], " "), r.Requests, r.Outcomes)
		}
	}
}

// attended is what a load says, which has begun with its first word.
type attended struct {
	began chan<- struct{}
	text  strings.Builder
}

func (a *attended) Write(p []byte) (int, error) {
	if a.text.Len() == 0 {
		a.began <- struct{}{}
	}
	return a.text.Write(p)
}

// once is a server, and a job that calls it with the first thing that it does: in an init container and in its own. The job's pod ends when that does.
const once = `
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {istio-injection: enabled}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: NS}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: server, namespace: NS}, spec: {selector: {matchLabels: {app: server}}, template: {metadata: {labels: {app: server}}, spec: {
  terminationGracePeriodSeconds: 60, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [server], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: client, namespace: NS}, spec: {selector: {matchLabels: {app: client}}, template: {metadata: {labels: {app: client}}, spec: {
  terminationGracePeriodSeconds: 1, containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [wait]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: NS}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
`

const job = `
{apiVersion: batch/v1, kind: Job, metadata: {name: once, namespace: NS}, spec: {backoffLimit: 0, template: {metadata: {labels: {app: once}}, spec: {restartPolicy: Never,
  initContainers: [{name: before, image: "docker.io/bulwark/sample:TAG", args: [get, "http://server/"]}],
  containers: [{name: app, image: "docker.io/bulwark/sample:TAG", args: [get, "http://server/"]}]}}}}
`

// TestAPodStartsAndEndsAsWithoutAProxy has a job make its first call at once, also in an init container, and end; and a pod be deleted while it is at a long request, which it
// answers before it ends.
func TestAPodStartsAndEndsAsWithoutAProxy(t *testing.T) {
	t.Parallel()
	const ns = "e2e-start"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cleanUp(t, ns)
	here := strings.NewReplacer("NS", ns, "TAG", *tag)
	err := cluster.Apply(ctx, here.Replace(once))
	if err == nil {
		err = reachable(ctx, ns, 2*time.Minute)
	}
	if err == nil {
		err = cluster.Apply(ctx, here.Replace(job))
	}
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	var long sample.Response
	g.Go(func() (err error) {
		long, err = lab.ExecJSON[sample.Response](ctx, cluster, ns, "client", "app", "sample", "get", "http://server/wait/20s", "--timeout", "1m")
		return err
	})
	err = lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
		j, err := cluster.BatchV1().Jobs(ns).Get(ctx, "once", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range j.Status.Conditions {
			if c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue {
				return lab.Stop(fmt.Errorf("the job has failed: %s", c.Message))
			}
		}
		if j.Status.Succeeded == 0 {
			return fmt.Errorf("the job has not ended: %+v", j.Status)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	pods, err := cluster.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=once"})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("%d pods of the job, %v", len(pods.Items), err)
	}
	for _, container := range []string{"before", "app"} {
		if r, err := lab.LogJSON[sample.Response](ctx, cluster, ns, pods.Items[0].Name, container); err != nil || r.Status != 200 {
			t.Errorf("the first call of container %s: %+v, %v", container, r, err)
		}
	}
	if err := g.Wait(); err != nil || long.Status != 200 {
		t.Fatalf("a request that takes 20 s: %+v, %v", long, err)
	}

	asked := time.Now()
	g.Go(func() (err error) {
		long, err = lab.ExecJSON[sample.Response](ctx, cluster, ns, "client", "app", "sample", "get", "http://server/wait/20s", "--timeout", "1m")
		return err
	})
	pod, err := cluster.Pod(ctx, ns, "server")
	if err == nil {
		err = lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error { return atARequest(ctx, pod) })
	}
	if err == nil {
		err = cluster.CoreV1().Pods(ns).Delete(ctx, pod.Name, metav1.DeleteOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil || long.Status != 200 {
		t.Errorf("a request that takes 20 s to a pod that was told to end meanwhile: %+v, %v", long, err)
	}
	t.Logf("answered %d after %s", long.Status, time.Since(asked).Round(time.Second))
}

// atARequest fails unless the proxy of a server has a request on its way to its application.
func atARequest(ctx context.Context, pod *corev1.Pod) error {
	text, err := cluster.ExecIn(ctx, pod, "app", "sample", "get", "http://127.0.0.1:15000/clusters")
	if err != nil {
		return err
	}
	var r sample.Response
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	for line := range strings.Lines(r.Body) {
		if strings.HasPrefix(line, "InboundPassthroughCluster::") && strings.Contains(line, "::rq_active::") && !strings.HasSuffix(strings.TrimSpace(line), "::0") {
			return nil
		}
	}
	return fmt.Errorf("no request is on its way to the application of %s", pod.Name)
}
