package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// saysAll fails unless meshctl ends as it should and says each text.
func saysAll(ctx context.Context, t *testing.T, ok bool, args []string, texts ...string) string {
	t.Helper()
	out, err := cluster.Meshctl(ctx, args...)
	said := string(out)
	if err != nil {
		said += err.Error()
	}
	if (err == nil) != ok {
		t.Errorf("meshctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	for _, text := range texts {
		if !strings.Contains(said, text) {
			t.Errorf("meshctl %s does not say %q:\n%s", strings.Join(args, " "), text, said)
		}
	}
	return said
}

// Settings that were given once stay; what would change is shown; what must not change by accident does not.
func TestInstallRemembersAndShowsWhatChanges(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := cluster.Install(ctx, os.Stdout); err != nil {
			t.Error(err)
		}
	})
	saysAll(ctx, t, true, []string{"install", "--set", "logLevel=warn"}, "setting logLevel: warn, was info", "Bulwark is ready")
	saysAll(ctx, t, true, []string{"install", "--diff"}, "Nothing would change.")
	saysAll(ctx, t, true, []string{"install"}, "Bulwark is ready")
	for _, component := range []string{"citadel", "pilot"} {
		d, err := cluster.AppsV1().Deployments(mesh.Namespace).Get(ctx, "bulwark-"+component, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if args := strings.Join(d.Spec.Template.Spec.Containers[0].Args, " "); !strings.Contains(args, "--logLevel=warn") || component == "citadel" && !strings.Contains(args, "--workloadTTL=1m") {
			t.Errorf("%s has forgotten its settings: %s", component, args)
		}
	}
	saysAll(ctx, t, true, []string{"install", "--set", "mtls=strict"}, "setting mtls: strict, was permissive")
	saysAll(ctx, t, true, []string{"install", "--diff", "--set", "mtls=permissive"}, "takes plaintext again", "-    mode: STRICT")
	saysAll(ctx, t, true, []string{"install", "--set", "mtls=null"}, "takes plaintext again")
	left, err := exec.CommandContext(ctx, "kubectl", "-n", mesh.Namespace, "get", "peerauthentications", "-o", "name").Output()
	if err != nil || len(left) > 0 {
		t.Errorf("the mesh-wide policy is still there: %q, %v", left, err)
	}
	saysAll(ctx, t, false, []string{"install", "--set", "trustDomain=example.org"}, "cannot become example.org")
	saysAll(ctx, t, false, []string{"install", "--reset", "--set", "citadel.workloadTTL=1s"}, "shorter than 30s")
	if settings, err := cluster.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.SettingsConfig, metav1.GetOptions{}); err != nil || strings.Contains(fmt.Sprint(settings.Data), "example.org") {
		t.Errorf("what was refused is remembered: %v, %v", settings.Data, err)
	}
}

// What a dry run prints, kubectl takes.
func TestKubectlTakesWhatADryRunPrints(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	manifest, err := cluster.Meshctl(ctx, "install", "--dry-run")
	if err != nil {
		t.Fatal(err)
	}
	apply := exec.CommandContext(ctx, "kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
	apply.Stdin = strings.NewReader(string(manifest))
	if out, err := apply.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// Into a cluster that has none of it, too: its first object is the namespace, with the labels that its pods need.
	if first, _, _ := strings.Cut(strings.TrimPrefix(string(manifest), "---\n"), "---\n"); !strings.Contains(first, "kind: Namespace") || !strings.Contains(first, "pod-security.kubernetes.io/enforce: privileged") {
		t.Errorf("the first object is\n%s", first)
	}
}

// Forbidden, not found, not running and unreachable call for different things to be done.
func TestAFailureSaysOfWhichKindItIs(t *testing.T) {
	prove(t, "failures", func(ctx context.Context, s *claims.Scene) (string, error) {
		nobody := filepath.Join(t.TempDir(), "nobody")
		if err := person(ctx, s, "nobody", nobody); err != nil {
			return "", err
		}
		content, err := os.ReadFile(nobody)
		if err != nil {
			return "", err
		}
		far := filepath.Join(t.TempDir(), "far")
		if err := os.WriteFile(far, []byte(strings.Replace(string(content), "server: https://", "server: https://127.0.0.1:1/", 1)), 0o600); err != nil {
			return "", err
		}
		n := 0
		for _, command := range []string{"status", "audit tail", "ca status", "identity list", "identity -n " + s.Namespace + " deploy/payroll", "pilot held", "verify", "version", "dashboard"} {
			for kubeconfig, kind := range map[string]string{nobody: "forbidden", far: "unreachable"} {
				out, err := cluster.Meshctl(ctx, append([]string{"--kubeconfig", kubeconfig}, strings.Fields(command)...)...)
				if said := string(out) + fmt.Sprint(err); err == nil || !strings.Contains(said, kind) {
					return "", fmt.Errorf("meshctl %s says not that it is %s: %s", command, kind, said)
				}
				n++
			}
		}
		if out, err := cluster.Meshctl(ctx, "identity", "-n", s.Namespace, "no-such-pod"); err == nil || !strings.Contains(err.Error(), "not found") {
			return "", fmt.Errorf("a pod that is not there: %s %v", out, err)
		}
		return fmt.Sprintf("%d failures told apart", n), nil
	})
}

// Kubernetes admits names of 253 bytes. Nobody is without a Secret for its length, and verify and Citadel agree who has one.
func TestLongAccountsAndThoseWithoutASecretVerify(t *testing.T) {
	prove(t, "accounts", func(ctx context.Context, s *claims.Scene) (string, error) {
		long := strings.Repeat("a", 246)
		for _, name := range []string{long, strings.Repeat("b", 253), "my.app", "doomed"} {
			if err := newAccount(ctx, s, name); err != nil {
				return "", err
			}
			if err := lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error { return s.SecretIsSound(ctx, s.Namespace, name) }); err != nil {
				return "", err
			}
		}
		// A revoked account has no Secret, and nothing is wrong with that.
		if out, err := s.Meshctl(ctx, "identity", "revoke", s.Namespace+"/doomed", "--for", "1h"); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		defer func() { _, _ = s.Meshctl(context.WithoutCancel(ctx), "identity", "restore", "doomed") }()
		err := lab.PollFor(ctx, 2*time.Minute, func(ctx context.Context) error {
			_, err := s.CoreV1().Secrets(s.Namespace).Get(ctx, mesh.SecretName("doomed"), metav1.GetOptions{})
			if err == nil {
				return fmt.Errorf("the Secret of a revoked account is still there")
			}
			return nil
		})
		if err != nil {
			return "", err
		}
		if out, err := s.Meshctl(ctx, "verify"); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		out, err := s.Meshctl(ctx, "identity", "list", "-n", s.Namespace, "--identity", s.Namespace+"/"+long, "-o", "json")
		if err != nil {
			return "", err
		}
		var listed []struct{ Identity string }
		if err := json.Unmarshal(out, &listed); err != nil || len(listed) != 1 || listed[0].Identity != s.ID(long) {
			return "", fmt.Errorf("listed: %s, %v", out, err)
		}
		events, err := s.CoreV1().Events(s.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("type", corev1.EventTypeWarning).String()})
		if err != nil {
			return "", err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "ServiceAccount" {
				return "", fmt.Errorf("Event %s of %s: %s", e.Reason, e.InvolvedObject.Name, e.Message)
			}
		}
		return "accounts of 246 and 253 bytes have their Secrets; verify passes without that of a revoked one", nil
	})
}
