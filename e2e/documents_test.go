package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// fenced is what a document shows between fences: a manifest, or commands.
type fenced struct {
	document string
	text     string
}

// name is the document and the block's first line, by which the list below knows it.
func (b fenced) name() string {
	first, _, _ := strings.Cut(strings.TrimSpace(b.text), "\n")
	return b.document + ": " + strings.TrimSpace(first)
}

var fence = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```$")

func blocks() ([]fenced, error) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		return nil, err
	}
	var out []fenced
	for _, path := range append(documents, "../README.md") {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for _, m := range fence.FindAllStringSubmatch(string(content), -1) {
			out = append(out, fenced{filepath.Base(path), m[1]})
		}
	}
	return out, nil
}

// run tries a block as a reader would, in a scene; nil where that cannot be done here.
type run func(ctx context.Context, t *testing.T, s *claims.Scene, text string) error

// documented is every block of the documents: how it is tried, or why it cannot be.
var documented = map[string]struct {
	run run
	why string
}{
	"README.md: make demo     # builds everything, starts a real two-node Kubernetes on this machine, installs Bulwark, proves it": {
		why: "these are the commands by which this test is run"},
	`README.md: make images && bin/images push --registry registry.example.com/bulwark --version "$(cat bin/tag)"`: {
		run: fromARegistry},
	"identity.md: $ meshctl identity list -n finance --identity payroll":                            {run: transcript},
	"identity.md: env: [{name: SPIFFE_ENDPOINT_SOCKET, value: \"unix:///run/bulwark/agent.sock\"}]": {run: socketPod},
	"identity.md: volumes:": {run: filesPod},
	"identity.md: openssl ecparam -name prime256v1 -genkey -noout -out root-key.pem":                                                                   {run: pluggedCA},
	"identity.md: meshctl install --set citadel.upstream.signer=clusterissuers.cert-manager.io/corporate --set citadel.upstream.roots=corporate-roots": {run: installDiff},
	"operating.md: apiVersion: security.istio.io/v1":                                                                                                   {run: manifest},
	"operating.md: kubectl create namespace bulwark-system": {
		why: "TestHelm runs it, as it needs a cluster without Bulwark"},
	"reach.md: meshctl reach -n finance deploy/account-auditor   # what it may call, and why":                    {run: commands},
	"reach.md: apiVersion: security.istio.io/v1":                                                                 {run: taken},
	"reach.md: kubectl -n finance annotate service payroll networking.istio.io/exportTo=.    # for finance only": {run: commands},
	"reach.md: apiVersion: networking.istio.io/v1":                                                               {run: taken},
	"reach.md: $ curl -i http://payroll.finance/accounts/7": {
		why: "TestOutOfReachIsRefusedByTheClientsOwnProxy asks and hears this"},
	"revocation.md: meshctl identity revoke finance/payroll --reason \"account misused\"          # an identity": {run: revocations},
	documentOfRotation: {
		why: "TestRootRotatesWithoutAFailedRequest runs it, under traffic"},
	"policies.md: apiVersion: security.istio.io/v1": {
		why: "its issuer is nobody's, and must not be asked; TestATokenIsDemandedAndVerified applies the same of one that is there"},
	"policies.md: extensionProviders: # values of the installation: meshctl install --values FILE": {run: values},
	"policies.md: apiVersion: networking.istio.io/v1":                                              {run: taken},
	"policies.md: kind: AuthorizationPolicy":                                                       {run: taken},
	"policies.md: $ meshctl audit tail -n finance --trial denied --since 24h": {
		why: "TestWhatPoliciesOnTrialWouldChangeIsTold asks so, and reads this"},
	"policies.md: kubectl apply -f deny-all.yaml": {
		why: "TestPolicyIsWaitedForUntilEveryProxyHasIt waits so"},
}

// wholes are documents of which another test reads every block.
var wholes = map[string]string{
	"analyze.md":  "pilot/analyze.TestExamples",
	"cookbook.md": "TestCookbook",
	"authz.md":    "TestADenialIsExplainedByItsRecordAndAdmittedByWhatIsPrinted and TestWhoCanAndWhatWasSeenAreTold ask the same; what is answered depends on what was there before",
}

// documentOfRotation names the block by which a root is rotated.
const documentOfRotation = "root-rotation.md: $ meshctl ca rotate"

// Every manifest and command that a document shows works as it stands there.
func TestDocumentsAreTrue(t *testing.T) {
	all, err := blocks()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, b := range all {
		seen[b.name()] = true
		if wholes[b.document] != "" {
			continue
		}
		if entry, ok := documented[b.name()]; !ok || entry.run == nil && entry.why == "" {
			t.Errorf("the block %q is not in the list of what is tried", b.name())
		}
	}
	for name := range documented {
		if !seen[name] {
			t.Errorf("no document has %q any longer", name)
		}
	}
	prove(t, "documents", func(ctx context.Context, s *claims.Scene) (string, error) {
		tried := 0
		for _, b := range all {
			entry := documented[b.name()]
			if entry.run == nil {
				continue
			}
			local := strings.ReplaceAll(b.text, "finance", s.Namespace)
			if err := entry.run(ctx, t, s, local); err != nil {
				return "", fmt.Errorf("%s: %w", b.name(), err)
			}
			tried++
		}
		return fmt.Sprintf("%d of %d blocks are tried", tried, len(all)), nil
	})
}

// transcript runs the command after a $ and compares the columns that are shown with those that come.
func transcript(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	command, shown, _ := strings.Cut(text, "\n")
	out, err := s.Meshctl(ctx, strings.Fields(strings.TrimPrefix(command, "$ meshctl "))...)
	if err != nil {
		return err
	}
	columns := func(s string) string {
		first, _, _ := strings.Cut(s, "\n")
		return strings.Join(regexp.MustCompile(` {2,}`).Split(strings.TrimSpace(first), -1), "|")
	}
	if got, want := columns(string(out)), columns(shown); got != want {
		return fmt.Errorf("has the columns %s, the document %s", got, want)
	}
	return nil
}

func manifest(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	return s.Apply(ctx, text)
}

// taken has the API server look at a manifest with all that reviews it, and changes nothing.
func taken(ctx context.Context, _ *testing.T, _ *claims.Scene, text string) error {
	cmd := exec.CommandContext(ctx, "kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// commands runs the lines as a script.
func commands(ctx context.Context, _ *testing.T, _ *claims.Scene, text string) error {
	cmd := exec.CommandContext(ctx, "sh", "-euc", text)
	cmd.Env = append(os.Environ(), "PATH="+binaries()+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// podWith makes a pod that waits, with parts of a document's.
func podWith(ctx context.Context, s *claims.Scene, name string, container, volumes map[string]any) error {
	c := map[string]any{"name": "client", "image": "docker.io/bulwark/sample:" + s.Tag, "imagePullPolicy": "IfNotPresent", "args": []any{"wait"},
		"securityContext": map[string]any{"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []any{"ALL"}},
			"seccompProfile": map[string]any{"type": "RuntimeDefault"}}}
	for k, v := range container {
		c[k] = v
	}
	pod, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": s.Outside, "labels": map[string]any{"app": name}},
		"spec":     map[string]any{"terminationGracePeriodSeconds": 1, "containers": []any{c}, "volumes": volumes["volumes"]}})
	if err != nil {
		return err
	}
	if err := s.Apply(ctx, string(pod)); err != nil {
		return err
	}
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		_, err := s.Pod(ctx, s.Outside, name)
		return err
	})
}

// socketPod has a pod with the container's part and the volume that the document shows, and asks for its identity there.
func socketPod(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	container, volume, found := strings.Cut(text, "# and in volumes:\n")
	if !found {
		return fmt.Errorf("the block has no volumes")
	}
	var c map[string]any
	var v []any
	if err := yaml.Unmarshal([]byte(container), &c); err != nil {
		return err
	}
	if err := yaml.Unmarshal([]byte(volume), &v); err != nil {
		return err
	}
	if err := podWith(ctx, s, "documented-socket", c, map[string]any{"volumes": v}); err != nil {
		return err
	}
	// The client of the Workload API takes its address from the environment, as the document sets it.
	out, err := s.Exec(ctx, s.Outside, "documented-socket", "client", "sample", "spiffe", "jwt", "documents", "--socket=/run/bulwark/agent.sock")
	if err != nil {
		return fmt.Errorf("asking for an identity: %w", err)
	}
	if len(out) == 0 {
		return fmt.Errorf("no identity")
	}
	return nil
}

// filesPod has a pod with the volumes that the document shows, and looks for the files.
func filesPod(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	var volumes map[string]any
	if err := yaml.Unmarshal([]byte(text), &volumes); err != nil {
		return err
	}
	c := map[string]any{"volumeMounts": []any{
		map[string]any{"name": "identity", "mountPath": "/identity", "readOnly": true}, map[string]any{"name": "spiffe", "mountPath": "/spiffe", "readOnly": true}}}
	if err := podWith(ctx, s, "documented-files", c, volumes); err != nil {
		return err
	}
	_, err := s.Exec(ctx, s.Outside, "documented-files", "client", "sample", "files", "/identity")
	return err
}

// pluggedCA runs the script in a folder of its own. The Secret is tried and not kept: the next rotation would take it.
func pluggedCA(ctx context.Context, t *testing.T, _ *claims.Scene, text string) error {
	script := strings.Replace(text, "create secret generic cacerts", "create secret generic cacerts --dry-run=server", 1)
	if script == text {
		return fmt.Errorf("the block does not create the Secret cacerts")
	}
	cmd := exec.CommandContext(ctx, "sh", "-euc", script)
	cmd.Dir = t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	verify := exec.CommandContext(ctx, "openssl", "verify", "-CAfile", "root-cert.pem", "ca-cert.pem")
	verify.Dir = cmd.Dir
	if out, err := verify.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// installDiff shows what the command would change: the cluster has no such signer.
func installDiff(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	args := append(strings.Fields(strings.TrimPrefix(strings.TrimSpace(text), "meshctl ")), "--diff")
	out, err := s.Meshctl(ctx, args...)
	if err == nil && !strings.Contains(string(out), "--upstreamSigner=clusterissuers.cert-manager.io/corporate") {
		err = fmt.Errorf("changes something else: %s", out)
	}
	return err
}

// values says what an installation by the values would change: it has another authorizer.
func values(ctx context.Context, t *testing.T, s *claims.Scene, text string) error {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	out, err := s.Meshctl(ctx, "install", "--diff", "--values", file)
	if err == nil && !strings.Contains(string(out), "opa.opa.svc.cluster.local") {
		err = fmt.Errorf("changes something else: %s", out)
	}
	return err
}

// fromARegistry runs each line in turn, with a registry of its own for the one that it shows as an example, and the scene for the
// namespace. The images are built already. The nodes cannot reach the registry, so of the installation it is only seen what it would change.
func fromARegistry(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	own := strings.TrimPrefix(server.URL, "http://") + "/bulwark"
	text = strings.NewReplacer("make images && ", "", "registry.example.com/bulwark", own, "namespace shop ", "namespace "+s.Namespace+" --overwrite ",
		"-n shop ", "-n "+s.Namespace+" ", "meshctl install ", "meshctl install --diff ").Replace(text)
	cmd := exec.CommandContext(ctx, "bash", "-euxc", text)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "PATH="+binaries()+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, want := range []string{"image: " + own + "/pilot:" + *tag, s.Namespace, "restarted"} {
		if !strings.Contains(string(out), want) {
			return fmt.Errorf("says nothing of %q: %s", want, out)
		}
	}
	return s.Ready(ctx, s.Namespace, 2*time.Minute)
}

// revocations runs each line in turn. The pod, the serial and the name that it shows as examples are those of the scene.
func revocations(ctx context.Context, _ *testing.T, s *claims.Scene, text string) error {
	pod, err := s.Pod(ctx, s.Namespace, "web")
	if err != nil {
		return err
	}
	held, err := s.Held(ctx, "account-auditor")
	if err != nil {
		return err
	}
	var made string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		line = regexp.MustCompile(`payroll-6d5f`).ReplaceAllString(line, pod.Name)
		line = regexp.MustCompile(`--serial \S+`).ReplaceAllString(line, "--serial "+held.Serial)
		line = regexp.MustCompile(`restore \S+`).ReplaceAllString(line, "restore "+made)
		cmd := exec.CommandContext(ctx, "sh", "-euc", line)
		cmd.Env = append(os.Environ(), "PATH="+binaries()+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
		if _, after, ok := strings.Cut(string(out), "meshctl identity restore "); ok {
			made, _, _ = strings.Cut(after, "\n")
		}
	}
	// The other revocations go with the namespace's next use; here they would only linger.
	out, err := s.Meshctl(ctx, "identity", "revocations", "-o", "json")
	if err != nil {
		return err
	}
	var list []struct{ Name, Identity string }
	if err := json.Unmarshal(out, &list); err != nil {
		return err
	}
	for _, r := range list {
		if strings.Contains(r.Identity, "/ns/"+s.Namespace+"/") {
			if _, err := s.Meshctl(ctx, "identity", "restore", r.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// binaries is where make puts them.
func binaries() string {
	dir, err := filepath.Abs("../bin")
	if err != nil {
		return "../bin"
	}
	return dir
}
