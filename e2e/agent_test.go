package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// identityLimit is how long a program that starts on the node may wait for its identity once the agent is ready again.
// Kubelet, who would bring the agent the pods' tokens again, comes after a minute or so.
const identityLimit = 5 * time.Second

// The agent of payroll's node is killed, and its pod is deleted, as in an upgrade, while requests go on: none fails, and
// a program that starts then has its identity at once.
func TestAgentKilledOrReplacedIsNotNoticedByItsPods(t *testing.T) {
	prove(t, "agent", func(ctx context.Context, s *claims.Scene) (string, error) {
		node, err := deployCaller(ctx, s)
		if err != nil {
			return "", err
		}
		var happened []string
		for _, way := range []struct {
			name string
			end  func(*corev1.Pod) error
		}{
			{"killed", func(agent *corev1.Pod) error { return s.KillContainer(agent, "agent") }},
			{"replaced", func(agent *corev1.Pod) error {
				return s.CoreV1().Pods(agent.Namespace).Delete(ctx, agent.Name, metav1.DeleteOptions{})
			}},
		} {
			var back, took time.Duration
			requests, err := underLoad(ctx, s, "agent-"+way.name, func() error {
				var err error
				back, took, err = identityAfter(ctx, s, node, way.end)
				return err
			})
			if errors.Is(err, lab.ErrElsewhere) {
				t.Skip(err)
			}
			if err != nil {
				return "", fmt.Errorf("agent %s: %w", way.name, err)
			}
			happened = append(happened, fmt.Sprintf("%s: ready again after %.1f s, a new client's SVID %.1f s later, %d requests, 0 failed", way.name, back.Seconds(), took.Seconds(), requests))
		}
		return strings.Join(happened, "; "), nil
	})
}

// kept are the directories in which an agent keeps something of a pod on its node.
var kept = []string{"run/bulwark/tokens", "var/lib/bulwark/pods", "var/lib/kubelet/pods"}

// What the agent keeps of a pod on its node, its token in memory, its name and its socket, goes with the pod.
func TestPodThatGoesLeavesNothingOnItsNode(t *testing.T) {
	prove(t, "gone", func(ctx context.Context, s *claims.Scene) (string, error) {
		node, err := deployCaller(ctx, s)
		if err != nil {
			return "", err
		}
		pod, err := s.Pod(ctx, s.Outside, "caller")
		if err != nil {
			return "", err
		}
		agent, err := agentOf(ctx, node)
		if err != nil {
			return "", err
		}
		root, err := s.ContainerRoot(agent, "agent")
		if errors.Is(err, lab.ErrElsewhere) {
			t.Skip(err)
		}
		if err != nil {
			return "", err
		}
		for _, dir := range kept {
			if found, err := mentions(filepath.Join(root, dir), string(pod.UID)); err != nil || len(found) == 0 {
				return "", fmt.Errorf("nothing of a running pod is in %s, or it cannot be read: %v", dir, err)
			}
		}
		if err := s.AppsV1().Deployments(s.Outside).Delete(ctx, "caller", metav1.DeleteOptions{}); err != nil {
			return "", err
		}
		deleted := time.Now()
		err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
			for _, dir := range kept {
				if found, err := mentions(filepath.Join(root, dir), string(pod.UID)); err != nil || len(found) > 0 {
					return fmt.Errorf("of a deleted pod there is still %v (%v)", found, err)
				}
			}
			out, err := s.Meshctl(ctx, "identity", "list", "-o", "json")
			if err == nil && strings.Contains(string(out), pod.Name) {
				err = errors.New("the deleted pod is still in meshctl identity list")
			}
			return err
		})
		return fmt.Sprintf("nothing is left %.1f s after the deletion", time.Since(deleted).Seconds()), err
	})
}

// mentions returns the files and directories below a directory with a text in their name, or in their content.
func mentions(dir, text string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		if strings.Contains(entry.Name(), text) {
			found = append(found, path)
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type().IsRegular() && filepath.Ext(path) == ".json" {
			if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), text) {
				found = append(found, path)
			}
		}
		return nil
	})
	return found, err
}

// Whoever may look into a proxy sees which certificates it has, and no key.
func TestNoKeyIsInWhatAProxyTells(t *testing.T) {
	prove(t, "dumps", func(ctx context.Context, s *claims.Scene) (string, error) {
		size := 0
		for _, page := range []string{"config_dump?include_eds", "certs", "clusters", "listeners", "stats", "server_info", "memory", "contention", "init_dump"} {
			out, err := s.Exec(ctx, s.Namespace, "payroll", s.Container("payroll"), "sample", "get", "http://127.0.0.1:15000/"+page)
			if err != nil {
				return "", err
			}
			size += len(out)
			// Keys are PEM in the configuration, and bytes are base64 in its JSON.
			for _, key := range []string{"PRIVATE KEY", base64.StdEncoding.EncodeToString([]byte("-----BEGIN PRIVATE KEY"))[:28], base64.StdEncoding.EncodeToString([]byte("-----BEGIN EC PRIVATE KEY"))[:28]} {
				if strings.Contains(string(out), key) {
					return "", fmt.Errorf("/%s has %q in it", page, key)
				}
			}
			if page == "config_dump?include_eds" && !strings.Contains(string(out), path.Join(mesh.IdentityMountPath, closer.File(closer.Version))) {
				return "", errors.New("the proxy does not read the module that its agent has left it")
			}
			for where, want := range map[string]string{"config_dump?include_eds": base64.StdEncoding.EncodeToString([]byte("[redacted]")), "certs": s.ID("payroll")} {
				if page == where && !strings.Contains(string(out), want) {
					return "", fmt.Errorf("/%s has no %q: is it the page of a proxy with a certificate?", page, want)
				}
			}
		}
		return fmt.Sprintf("no key in %d kB", size>>10), nil
	})
}

// deployCaller runs a pod that uses the Workload API on the node of payroll, whose name it returns.
func deployCaller(ctx context.Context, s *claims.Scene) (node string, err error) {
	payroll, err := s.Pod(ctx, s.Namespace, "payroll")
	if err != nil {
		return "", err
	}
	node = payroll.Spec.NodeName
	manifest := fillIn(barePod("caller", bareClient, ownSocket), s.Outside, s.Tag)
	if err := s.Apply(ctx, strings.Replace(manifest, "serviceAccountName: caller\n", "serviceAccountName: caller\n      nodeName: "+node+"\n", 1)); err != nil {
		return "", err
	}
	if err := s.Ready(ctx, s.Outside, time.Minute); err != nil {
		return "", err
	}
	return node, asksWhoItIs(ctx, s) // an agent that is ended knows the pod
}

// identityAfter ends the node's agent, and returns after which time one was ready again, and how much later a new client
// had its SVID.
func identityAfter(ctx context.Context, s *claims.Scene, node string, end func(*corev1.Pod) error) (back, took time.Duration, err error) {
	before, err := agentOf(ctx, node)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := end(before); err != nil {
		return 0, 0, err
	}
	err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		now, err := agentOf(ctx, node)
		if err == nil && now.Status.ContainerStatuses[0].ContainerID == before.Status.ContainerStatuses[0].ContainerID {
			err = fmt.Errorf("agent %s has not ended", now.Name)
		}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	ready := time.Now()
	err = lab.PollFor(ctx, identityLimit, func(ctx context.Context) error { return asksWhoItIs(ctx, s) })
	if err != nil {
		err = fmt.Errorf("no SVID within %s of the agent's return: %w", identityLimit, err)
	}
	return ready.Sub(began), time.Since(ready), err
}

// agentOf returns the agent of a node. It is an error if that is not ready.
func agentOf(ctx context.Context, node string) (*corev1.Pod, error) {
	pods, err := cluster.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=agent", FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, err
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].Ready {
			return &pod, nil
		}
	}
	return nil, fmt.Errorf("no agent on %s is ready", node)
}

// asksWhoItIs runs a program in the caller's pod that has nothing yet and asks the Workload API.
func asksWhoItIs(ctx context.Context, s *claims.Scene) error {
	got, err := lab.ExecJSON[sample.SVIDResult](ctx, s.Lab, s.Outside, "caller", "client", "sample", "svid", "/spiffe/agent.sock")
	if want := fmt.Sprintf("spiffe://%s/ns/%s/sa/caller", mesh.DefaultTrustDomain, s.Outside); err == nil && got.ID != want {
		err = lab.Stop(fmt.Errorf("the caller is %s, not %s", got.ID, want))
	}
	return err
}
