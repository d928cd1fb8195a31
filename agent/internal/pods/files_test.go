package pods_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/agent/internal/files"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
)

// withFiles moves a volume into memory and asks for files in the emptyDir beside it.
func withFiles(t *testing.T, v pods.Volume) (pods.Volume, string) {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "pods")
	if err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	v.Target = filepath.Join(base, v.Facts.UID, "volumes/kubernetes.io~csi/bulwark-identity/mount")
	v.Files = files.Spec{Volume: "certs", Mode: 0o400, UID: 1000, GID: 1000}
	dir := v.Files.Dir(v.Target)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return v, dir
}

func TestPodWithFilesDoesNotStartWithoutThem(t *testing.T) {
	n := newNode(t)
	v, dir := withFiles(t, n.volume("p1", "payroll"))
	if err := n.registry.Publish(v, "", time.Time{}); !errors.Is(err, files.ErrNotWritten) {
		t.Fatalf("without a token: %v", err)
	}
	n.citadel.Account("token1", n.ca.ID("finance", "payroll"))
	until(t, "published", func() bool {
		err := n.registry.Publish(v, "token1", time.Now().Add(time.Hour))
		if err != nil && !errors.Is(err, files.ErrNotWritten) {
			t.Fatal(err)
		}
		return err == nil
	})
	key := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := key()
	subscribe(t, v).certificate() // the socket is there as well
	if got := n.registry.Pods()[0].Delivery(); len(got) != 2 {
		t.Fatalf("delivery %v", got)
	}

	// The files outlive the agent, and the next one goes on with them.
	n.registry.Close()
	if key() != before {
		t.Fatal("the files went with the agent")
	}
	n.start()
	if err := n.registry.Restore(); err != nil {
		t.Fatal(err)
	}
	if err := n.registry.Publish(v, "token1", time.Now().Add(time.Hour)); err != nil {
		t.Fatalf("a pod that runs is published again: %v", err)
	}
	until(t, "the new agent's files", func() bool { return key() != before })

	other := v
	other.ID, other.Target = "csi-second", strings.Replace(v.Target, "bulwark-identity", "second", 1)
	if err := n.registry.Publish(other, "token1", time.Now().Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "another volume") {
		t.Fatalf("two volumes with the same files: %v", err)
	}
	if err := n.registry.Unpublish(other.ID, other.Target); err != nil {
		t.Fatal(err)
	}
	if key() == "" {
		t.Fatal("the second volume took the first one's files along")
	}

	state, err := filepath.Glob(filepath.Join(n.dir, "state", "*"))
	if err != nil || len(state) != 1 {
		t.Fatalf("state %v, %v", state, err)
	}
	if b, err := os.ReadFile(state[0]); err != nil || strings.Contains(string(b), "token1") || strings.Contains(string(b), "PRIVATE") {
		t.Fatalf("state on disk: %s, %v", b, err)
	}
	if err := n.registry.Unpublish(v.ID, v.Target); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}
