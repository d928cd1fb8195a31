package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
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

// Pods of one class on one node. A gate holds each until the test lets it be scheduled.
const gated = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: held, namespace: finance}
spec:
  replicas: 2
  selector: {matchLabels: {app: held}}
  template:
    metadata: {labels: {app: held}}
    spec:
      serviceAccountName: account-auditor
      schedulingGates: [{name: bulwark.test/held}]
      nodeSelector: {kubernetes.io/hostname: NODE}
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: client
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [wait]
          readinessProbe: {tcpSocket: {port: 15090}, periodSeconds: 1} # which the proxy is asked for
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

// While there is no Pilot, an Envoy that is killed comes back with its configuration, and a pod starts that Pilot has never spoken of, since its
// node has another of its class: with its identity, its probes and what it may call. Nodes are in zones, after which Kubernetes labels their pods.
func TestPodsStartWhilePilotIsAway(t *testing.T) {
	inZones(t.Context(), t)
	prove(t, "pilot-away", func(ctx context.Context, s *claims.Scene) (string, error) {
		auditor, err := s.Pod(ctx, s.Namespace, "account-auditor")
		if err != nil {
			return "", err
		}
		if err := s.Apply(ctx, s.Local(strings.ReplaceAll(gated, "NODE", auditor.Spec.NodeName))); err != nil {
			return "", err
		}
		if _, err := schedule(ctx, s, "held"); err != nil {
			return "", err
		}
		back := func() error { return s.Scale(context.WithoutCancel(ctx), mesh.PilotAccount, 1) }
		if err := s.Scale(ctx, mesh.PilotAccount, 0); err != nil {
			return "", errors.Join(err, back())
		}
		var took time.Duration
		err = func() error {
			if err := s.KillContainer(auditor, mesh.ProxyContainer); err != nil {
				return err
			}
			began := time.Now()
			second, err := schedule(ctx, s, "held")
			if err != nil {
				return fmt.Errorf("a pod of a class that the node has, without Pilot: %w", err)
			}
			took = time.Since(began)
			for name, pod := range map[string]*corev1.Pod{"the pod that started without Pilot": second, "the pod whose proxy was killed": auditor} {
				err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
					got, err := lab.ExecInJSON[sample.Response](ctx, s.Lab, pod, "client", "sample", "get", s.URL("/accounts/1"))
					if err == nil && got.Status != 200 {
						err = fmt.Errorf("%s: it is answered %+v", name, got)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		}()
		if err := errors.Join(err, back()); err != nil {
			return "", err
		}
		happened, err := claims.AChangedPolicyIsEnforced(ctx, s)
		return fmt.Sprintf("a pod was ready after %.1f s without Pilot; with one again, %s", took.Seconds(), happened), err
	})
}

// schedule lets one pod of an app be scheduled that a gate holds, and waits until it is ready.
func schedule(ctx context.Context, s *claims.Scene, app string) (*corev1.Pod, error) {
	pods := s.CoreV1().Pods(s.Namespace)
	var name string
	err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if len(p.Spec.SchedulingGates) > 0 {
				name = p.Name
				return nil
			}
		}
		return fmt.Errorf("no pod of %s is held by a gate", app)
	})
	if err != nil {
		return nil, err
	}
	if _, err := pods.Patch(ctx, name, types.MergePatchType, []byte(`{"spec": {"schedulingGates": null}}`), metav1.PatchOptions{}); err != nil {
		return nil, err
	}
	var pod *corev1.Pod
	return pod, lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		if pod, err = pods.Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not ready: %+v", name, pod.Status.InitContainerStatuses)
	})
}

// Two Pilots: agents are with the one or the other, a policy reaches all, and either can be killed under load.
func TestTwoPilotsServeTheMesh(t *testing.T) {
	prove(t, "two-pilots", func(ctx context.Context, s *claims.Scene) (happened string, err error) {
		if err := s.Scale(ctx, mesh.PilotAccount, 2); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, s.Scale(context.WithoutCancel(ctx), mesh.PilotAccount, 1)) }()
		requests, err := underLoad(ctx, s, fmt.Sprintf("two-%d", time.Now().UnixNano()), func() error {
			for range 2 {
				pilots, err := s.Component(ctx, "pilot")
				if err != nil {
					return err
				}
				if len(pilots) != 2 {
					return fmt.Errorf("there are %d Pilots", len(pilots))
				}
				if err := s.CoreV1().Pods(mesh.Namespace).Delete(ctx, pilots[0].Name, *metav1.NewDeleteOptions(0)); err != nil {
					return err
				}
				if _, err := claims.AChangedPolicyIsEnforced(ctx, s); err != nil {
					return fmt.Errorf("with one of two Pilots killed: %w", err)
				}
				if err := s.Scale(ctx, mesh.PilotAccount, 2); err != nil {
					return err
				}
			}
			return nil
		})
		return fmt.Sprintf("each killed once, policies were enforced meanwhile; %d requests, 0 failed", requests), err
	})
}

// The deployment drains as one has to in Kubernetes with or without a mesh: it goes on for a while after it is told to end, until nobody calls it.
const crowd = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: crowd, namespace: finance}
---
apiVersion: v1
kind: Service
metadata: {name: crowd, namespace: finance}
spec:
  selector: {app: crowd}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd, namespace: finance}
spec:
  replicas: REPLICAS
  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      serviceAccountName: crowd
      nodeName: NODE # which asks no scheduler for room
      terminationGracePeriodSeconds: 15
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: server
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [server, --name=crowd]
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 2}
          lifecycle: {preStop: {sleep: {seconds: 5}}}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

// fewest requests tell something.
const fewest = 500

// Starting 50 pods takes all of two cores for minutes, so that is for `make soak`.
var crowdSize = flag.Int("crowd", 10, "how many pods of one node are replaced in the test of that")

// All pods of a deployment on one node are replaced, and Pilot, too, while they are called over kept and new connections.
func TestNoRequestFailsWhileACrowdAndPilotAreReplaced(t *testing.T) {
	proveFor(t, "crowd", 20*time.Minute, func(ctx context.Context, s *claims.Scene) (happened string, err error) {
		defer func() {
			var log bytes.Buffer
			if back := s.Install(context.WithoutCancel(ctx), &log); back != nil {
				err = errors.Join(err, fmt.Errorf("putting the installation back: %w: %s", back, &log))
			}
		}()
		// Kubelet takes 55 pods on a node of two CPUs if each asks for little enough.
		little := []byte(`[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--inject.cpu=10m"}]`)
		if _, err := s.AppsV1().Deployments(mesh.Namespace).Patch(ctx, mesh.PilotAccount, types.JSONPatchType, little, metav1.PatchOptions{}); err != nil {
			return "", err
		}
		if err := s.Ready(ctx, mesh.Namespace, time.Minute); err != nil {
			return "", err
		}
		payroll, err := s.Pod(ctx, s.Namespace, "payroll")
		if err != nil {
			return "", err
		}
		manifest := strings.NewReplacer("NODE", payroll.Spec.NodeName, "REPLICAS", fmt.Sprint(*crowdSize)).Replace(crowd)
		if err := s.Apply(ctx, s.Local(manifest)); err != nil {
			return "", err
		}
		if err := s.Ready(ctx, s.Namespace, 5*time.Minute); err != nil {
			return "", err
		}
		url := fmt.Sprintf("http://crowd.%s/healthz", s.Namespace)
		err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
			first, err := s.Get(ctx, "account-auditor", url)
			if err == nil && first.Status != 200 {
				err = fmt.Errorf("the first answer is %+v", first)
			}
			return err
		})
		if err != nil {
			return "", err
		}
		began := time.Now()
		requests, err := calling(ctx, s, url, func() error {
			restart := fmt.Appendf(nil, `{"spec": {"template": {"metadata": {"annotations": {"restarted": %q}}}}}`, began.Format(time.RFC3339))
			for namespace, name := range map[string]string{s.Namespace: "crowd", mesh.Namespace: mesh.PilotAccount} {
				if _, err := s.AppsV1().Deployments(namespace).Patch(ctx, name, types.StrategicMergePatchType, restart, metav1.PatchOptions{}); err != nil {
					return err
				}
			}
			return errors.Join(s.Ready(ctx, mesh.Namespace, 3*time.Minute), s.Ready(ctx, s.Namespace, 12*time.Minute))
		})
		took := time.Since(began)
		if err == nil && requests < fewest {
			err = fmt.Errorf("there were only %d requests", requests)
		}
		// What comes next on this machine is not to share it with so many pods that end.
		err = errors.Join(err, s.AppsV1().Deployments(s.Namespace).Delete(ctx, "crowd", metav1.DeleteOptions{}), lab.PollFor(ctx, 3*time.Minute, func(ctx context.Context) error {
			left, err := s.CoreV1().Pods(s.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=crowd"})
			if err == nil && len(left.Items) > 0 {
				err = fmt.Errorf("%d pods have not ended", len(left.Items))
			}
			return err
		}))
		return fmt.Sprintf("%d pods and Pilot replaced in %.0f s; %d requests, 0 failed", *crowdSize, took.Seconds(), requests), err
	})
}

// calling does something while a URL is asked for over kept and over new connections. An answer other than 200 is an error.
func calling(ctx context.Context, s *claims.Scene, url string, do func() error) (requests int, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for _, flags := range [][]string{nil, {"--new-connections"}, {"--http2"}} {
		wg.Go(func() {
			for over := false; !over; {
				select {
				case <-ended:
					over = true // one more piece of what there is then
				default:
				}
				piece, e := lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client",
					append([]string{"sample", "load", url, "--duration=3s", "--interval=20ms"}, flags...)...)
				if e == nil && piece.Outcomes["200"] != piece.Requests {
					e = fmt.Errorf("%v: outcomes %v of %d requests: %v", flags, piece.Outcomes, piece.Requests, piece.Errors)
				}
				mu.Lock()
				requests += piece.Requests
				err = errors.Join(err, e)
				mu.Unlock()
				over = over || e != nil
			}
		})
	}
	happened := do()
	close(ended)
	wg.Wait()
	return requests, errors.Join(happened, err)
}
