package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/oci"
)

// The test uses the cluster that is up, with the programs of the checkout it lies in.
var checkout = func() string { abs, _ := filepath.Abs("../../.."); return abs }()

const image = "docker.io/bulwark/smoke:test"

func TestClusterCanDoWhatAMeshAsks(t *testing.T) {
	loadImage(t)
	nodes := strings.Fields(kubectl(t, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	cert, key := certificate(t)
	manifest, err := os.ReadFile("testdata/smoke.yaml")
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("${CERT}", cert, "${KEY}", key, "${LAST_NODE}", nodes[len(nodes)-1]).Replace(string(manifest))
	t.Cleanup(func() {
		// The pod first, while its driver is still there to unmount its volume.
		kubectl(t, "", "delete", "pod", "-n", "smoke", "near", "--ignore-not-found", "--wait", "--timeout=60s")
		left := driverMounts(t)
		for deadline := time.Now().Add(20 * time.Second); left != "0" && time.Now().Before(deadline); left = driverMounts(t) {
			time.Sleep(100 * time.Millisecond)
		}
		if left != "0" {
			t.Errorf("%s mounts of the driver left on node1", left)
		}
		kubectl(t, filled, "delete", "--ignore-not-found", "--wait", "--timeout=60s", "-f", "-")
	})
	start := time.Now()
	kubectl(t, filled, "apply", "-f", "-")
	kubectl(t, "", "wait", "-n", "smoke", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	t.Logf("all pods ready in %s", time.Since(start).Round(100*time.Millisecond))

	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"service on another node, port redirected in the pod", "far to 10.241.1.", []string{"get", "http://far.smoke"}},
		{"service on the same node", "near to 10.241.1.", []string{"get", "http://near.smoke.svc.cluster.local"}},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, inPod(t, "client", tc.args...), tc.want) })
	}
	t.Run("a pod reaches itself through its service", func(t *testing.T) {
		expect(t, inPod(t, "near", "get", "http://near.smoke"), "near to ")
	})
	t.Run("inline CSI volume with the pod's token", func(t *testing.T) {
		expect(t, inPod(t, "near", "cat", "/identity/pod"), "near token=true")
	})
	t.Run("the driver's mount is seen on the node", func(t *testing.T) {
		if got := driverMounts(t); got != "1" {
			t.Errorf("%s mounts of the driver, want 1", got)
		}
	})
	t.Run("projected volume", func(t *testing.T) {
		expect(t, inPod(t, "near", "cat", "/projected/hello"), "world")
		expect(t, inPod(t, "near", "cat", "/projected/token"), "ey")
	})
	t.Run("logs", func(t *testing.T) {
		expect(t, kubectl(t, "", "logs", "-n", "smoke", "far", "-c", "sidecar"), "serving as far")
	})
	t.Run("API server calls a webhook through its service", func(t *testing.T) {
		const refused = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: smoke, labels: {smoke: refuse}}\n"
		out, err := try(t, refused, "bin/kubectl", "create", "-f", "-")
		if err == nil {
			t.Fatal("the object was admitted")
		}
		expect(t, out, "refused by the smoke test")
	})
	t.Run("port-forward", portForward)
	t.Run("exec reports the command's failure", func(t *testing.T) {
		if out, err := try(t, "", "bin/kubectl", "exec", "-n", "smoke", "client", "--", "/smoke", "cat", "/none"); err == nil {
			t.Errorf("no error: %s", out)
		}
	})
}

// driverMounts counts, on the first node, the volumes that the driver has mounted.
func driverMounts(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(onNode(t, "node1", "grep", "-c", "kubernetes.io~csi/identity/mount", "/proc/self/mountinfo"))
}

func portForward(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := command(ctx, "bin/kubectl", "port-forward", "-n", "smoke", "pod/far", ":8080")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	var port int
	if _, err := fmt.Fscanf(stdout, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get(fmt.Sprintf("http://127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, string(body), "far to 127.0.0.1")
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %q, want it to contain %q", got, want)
	}
}

func inPod(t *testing.T, pod string, args ...string) string {
	t.Helper()
	return kubectl(t, "", append([]string{"exec", "-n", "smoke", pod, "--", "/smoke"}, args...)...)
}

func kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := try(t, stdin, "bin/kubectl", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// onNode runs a command whose exit status does not matter: grep -c fails when it counts none.
func onNode(t *testing.T, node string, args ...string) string {
	t.Helper()
	out, _ := try(t, "", "bin/cluster", append([]string{"exec", node, "--"}, args...)...)
	return out
}

func try(t *testing.T, stdin, program string, args ...string) (string, error) {
	t.Helper()
	// Not the test's context: that has ended when cleanup runs.
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := command(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(checkout, program), args...)
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(checkout, ".cluster", "kubeconfig"))
	return cmd
}

func loadImage(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	binary, archive := filepath.Join(dir, "smoke"), filepath.Join(dir, "smoke.tar")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	built, err := oci.Build(oci.Spec{
		Files:      []oci.File{{Path: "/smoke", Source: binary, Mode: 0o755}},
		Entrypoint: []string{"/smoke"},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.Write(archive, image, "test", built); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, "", "bin/cluster", "load", archive); err != nil {
		t.Fatalf("load: %v\n%s", err, out)
	}
}

// certificate of the webhook's service, and its key, in base64 as manifests hold them.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"webhook.smoke.svc"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}
