// Package envoytest runs a real Envoy in tests: as the judge of our resources, and as the proxy that enforces them.
package envoytest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/proto"
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
	text, err := proto.Marshal(b) // which Envoy reads sooner than JSON
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.pb")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// telling are the lines of Envoy's log that are not about settings which its makers call unfinished: there is one for each listener, and what went wrong comes after them.
func telling(log []byte) []byte {
	var out []byte
	for line := range bytes.Lines(log) {
		if !bytes.Contains(line, []byte("work-in-progress")) {
			out = append(out, line...)
		}
	}
	return out
}

// answers reports whether a URL's answer is good, and has a text in it.
func answers(client *http.Client, url, text string) bool {
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK && bytes.Contains(body, []byte(text))
}

// Start runs Envoy until the test ends, and waits for it to be ready. The bootstrap's admin must be on 127.0.0.1. It is an error
// if Envoy finds something deprecated. It returns the file that has what Envoy says.
func Start(t testing.TB, b *bootstrap.Bootstrap, node string) string {
	t.Helper()
	return start(t, nil, b, node)
}

// start runs Envoy in a network namespace, or in that of the test if it is nil.
func start(t testing.TB, in *Netns, b *bootstrap.Bootstrap, node string) (log string) {
	t.Helper()
	line, dial := []string{Find(t)}, new(net.Dialer).DialContext
	if in != nil {
		line, dial = in.asProxy(line), in.Dial
	}
	line = append(line, "-c", write(t, b), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart",
		"--service-node", node, "--service-cluster", "test", "--base-id-path", filepath.Join(t.TempDir(), "base"))
	cmd := exec.Command(line[0], line[1:]...)
	logFile, err := os.Create(filepath.Join(t.TempDir(), "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread whose end is the parent's death
		started <- cmd.Start()
		done <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = logFile.Close()
		log, _ := os.ReadFile(logFile.Name())
		if bytes.Contains(log, []byte("eprecated")) {
			t.Error("Envoy finds something deprecated")
		}
		if t.Failed() {
			t.Logf("Envoy's log:\n%.20000s", telling(log))
		}
	})
	admin := fmt.Sprintf("http://127.0.0.1:%d", b.GetAdmin().GetAddress().GetSocketAddress().GetPortValue())
	deadline := time.Now().Add(30 * time.Second)
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	for {
		// One that is ready has not yet begun to listen, if it has little of the processors' time.
		if answers(client, admin+"/ready", "LIVE") && answers(client, admin+"/stats?filter=workers_started", "workers_started: 1") {
			return logFile.Name()
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
