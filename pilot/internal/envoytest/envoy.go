// Package envoytest runs a real Envoy in tests: as the judge of our resources, and as the proxy that enforces them.
package envoytest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// Find returns the Envoy binary named by BULWARK_ENVOY or on PATH, and skips the test if there is none.
func Find(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("BULWARK_ENVOY"); p != "" {
		return p
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no Envoy: set BULWARK_ENVOY or put envoy on PATH")
	}
	return p
}

func write(t testing.TB, b *bootstrap.Bootstrap) string {
	t.Helper()
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Validate has Envoy load a configuration without serving it.
func Validate(t testing.TB, b *bootstrap.Bootstrap) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, Find(t), "--mode", "validate", "--log-level", "warning", "-c", write(t, b),
		"--service-node", "sidecar~10.0.0.1~a.b~b.svc.cluster.local", "--service-cluster", "a.b").CombinedOutput()
	if err != nil {
		t.Fatalf("Envoy refuses the configuration: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "eprecated") {
		t.Errorf("Envoy finds something deprecated:\n%s", out)
	}
}

// Start runs Envoy until the test ends, and waits for it to be ready. The bootstrap's admin must be on 127.0.0.1.
func Start(t testing.TB, b *bootstrap.Bootstrap, node string) {
	t.Helper()
	args := []string{"-c", write(t, b), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart",
		"--service-node", node, "--service-cluster", "test", "--base-id-path", filepath.Join(t.TempDir(), "base")}
	cmd := exec.Command(Find(t), args...)
	logFile, err := os.Create(filepath.Join(t.TempDir(), "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = logFile.Close()
		if t.Failed() {
			log, _ := os.ReadFile(logFile.Name())
			t.Logf("Envoy's log:\n%.20000s", log)
		}
	})
	port := b.GetAdmin().GetAddress().GetSocketAddress().GetPortValue()
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/ready", port))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-done:
			done <- err
			t.Fatalf("Envoy ended: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("Envoy is not ready")
		}
	}
}
