package pods_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// newKeeping is a node that keeps tokens in memory. Its log may be read when the registry is closed.
func newKeeping(t *testing.T) (*node, *bytes.Buffer) {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "tokens")
	if err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	n := newNode(t)
	log := &bytes.Buffer{}
	n.tokens = filepath.Join(base, "bulwark/tokens")
	n.log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.issuer.Log = n.log
	n.restart()
	return n, log
}

// restart is another agent on the same node, which nobody has published anything to yet.
func (n *node) restart() {
	n.t.Helper()
	n.registry.Close()
	n.start()
	if err := n.registry.Restore(); err != nil {
		n.t.Fatal(err)
	}
}

// kept are the names in the directory of tokens, and all that is in it.
func (n *node) kept() (names []string, content string) {
	n.t.Helper()
	entries, err := os.ReadDir(n.tokens)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(n.tokens, e.Name()))
		if err != nil {
			n.t.Fatal(err)
		}
		names, content = append(names, e.Name()), content+string(b)
	}
	return names, content
}

// find returns the files below a directory that have a string in them.
func find(t *testing.T, dir, what string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), what) {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRestartedAgentHasThePodsIdentityBeforeKubeletCalls(t *testing.T) {
	n, log := newKeeping(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "an-old-secret")
	n.publish(v, "a-great-secret")
	names, content := n.kept()
	if len(names) != 1 || !strings.Contains(content, "a-great-secret") || strings.Contains(content, "an-old-secret") {
		t.Fatalf("kept: %v", names)
	}
	for path, mode := range map[string]fs.FileMode{n.tokens: fs.ModeDir | 0o700, filepath.Join(n.tokens, names[0]): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != mode {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), err)
		}
	}
	n.restart()
	if got := subscribe(t, v).certificate().URIs[0].String(); got != "spiffe://cluster.local/ns/finance/sa/payroll" {
		t.Fatalf("certificate for %s", got)
	}
	calls := n.citadel.Calls()
	if got := calls[len(calls)-1].Get("authorization"); len(got) != 1 || got[0] != "Bearer a-great-secret" {
		t.Fatal("not by the latest token")
	}
	if !n.registry.Pods()[0].Unknown() {
		t.Error("the pod's proxy has not come back, and is believed to hold nothing old")
	}
	n.registry.Close()
	if found := find(t, n.dir, "secret"); len(found) > 0 || strings.Contains(log.String(), "secret") {
		t.Errorf("a token is in the log or in %v", found)
	}
	if !strings.Contains(log.String(), "pods=1 withToken=1") {
		t.Errorf("log: %s", log)
	}
}

// A pod that the agent has served since the node was started has its network; after a reboot, it gets another.
func TestAPodHasBegunUntilTheNodeRestarts(t *testing.T) {
	n, _ := newKeeping(t)
	v := n.volume("p1", "payroll")
	begun := func(when string, want bool) {
		t.Helper()
		if got := n.registry.Begun(v.Facts.UID); got != want {
			t.Errorf("%s: begun %v", when, got)
		}
	}
	begun("before its volume", false)
	n.publish(v, "token1")
	begun("with its volume", true)
	n.restart()
	begun("after the agent's restart", true)
	n.registry.Close()
	names, _ := n.kept()
	for _, name := range names { // what is in memory goes with the node
		if err := os.Remove(filepath.Join(n.tokens, name)); err != nil {
			t.Fatal(err)
		}
	}
	n.restart()
	begun("after the node's restart", false)
}

func TestAllPodsOfANodeHaveTheirSVIDsSoonAfterARestart(t *testing.T) {
	const count = 100
	n, _ := newKeeping(t)
	for i := range count {
		n.publish(n.volume(fmt.Sprintf("p%d", i), "payroll"), fmt.Sprintf("token-%d", i))
	}
	began := time.Now()
	n.restart()
	if got := len(n.registry.Pods()); got != count {
		t.Fatalf("restored %d pods", got)
	}
	for _, p := range n.registry.Pods() {
		select {
		case <-p.Ready():
		case <-time.After(20*time.Second - time.Since(began)):
			t.Fatalf("%s: %v", p, p.Status().LastError)
		}
	}
	took := time.Since(began)
	t.Logf("%d pods had their SVIDs %s after the restart", count, took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Error("that is too late for a client that waits")
	}
}

func TestTokensAreNeverWrittenToADisk(t *testing.T) {
	n := newNode(t)
	var st unix.Statfs_t
	if err := unix.Statfs(n.dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is in memory itself", n.dir)
	}
	var log bytes.Buffer
	n.log = slog.New(slog.NewTextHandler(&log, nil))
	n.restart()
	v := n.volume("p1", "payroll")
	n.publish(v, "a-great-secret")
	subscribe(t, v).certificate()
	n.registry.Close()
	if found := find(t, n.dir, "a-great-secret"); len(found) > 0 {
		t.Fatalf("on disk: %v", found)
	}
	if strings.Count(log.String(), "no identity for up to 90 s after the agent restarts") != 1 {
		t.Fatalf("log: %s", &log)
	}
	n.restart()
	until(t, "as before: the pod waits for kubelet", func() bool { return errors.Is(n.registry.Pods()[0].Status().LastError, svid.ErrNoToken) })
	n.publish(v, "a-great-secret")
	subscribe(t, v).certificate()
}

func TestTokenGoesWithThePodsLastVolume(t *testing.T) {
	n, _ := newKeeping(t)
	v := n.volume("p1", "payroll")
	second := v
	second.ID, second.Target = "csi-second", strings.Replace(v.Target, "bulwark-identity-volume", "second", 1)
	n.publish(v, "token1")
	n.publish(second, "token1")
	for _, gone := range []struct {
		pods.Volume
		left int
	}{{v, 1}, {second, 0}} {
		if err := n.registry.Unpublish(gone.ID, gone.Target); err != nil {
			t.Fatal(err)
		}
		if names, _ := n.kept(); len(names) != gone.left {
			t.Fatalf("kept: %v, want %d", names, gone.left)
		}
	}
}

func TestTokenOfAPodThatWentWhileNoAgentWasThereIsRemoved(t *testing.T) {
	n, _ := newKeeping(t)
	stays, gone := n.volume("p1", "payroll"), n.volume("p2", "web")
	n.publish(stays, "token1")
	n.publish(gone, "token2")
	n.registry.Close()
	if err := os.RemoveAll(gone.Target); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if names, content := n.kept(); len(names) != 1 || !strings.Contains(content, "token1") {
		t.Fatalf("kept: %v", names)
	}
}

func TestTokenThatHasEndedIsNotUsed(t *testing.T) {
	n, _ := newKeeping(t)
	clk := testclock.NewFakeClock(time.Now())
	n.issuer.Clock = clk
	n.restart()
	v := n.volume("p1", "payroll")
	n.publish(v, "token1") // good for an hour
	subscribe(t, v).certificate()
	asked := len(n.citadel.Calls())
	n.registry.Close()
	clk.Step(61 * time.Minute)
	n.restart()
	until(t, "the pod waits for a token", func() bool { return errors.Is(n.registry.Pods()[0].Status().LastError, svid.ErrNoToken) })
	if names, _ := n.kept(); len(names) > 0 || len(n.citadel.Calls()) != asked {
		t.Fatalf("kept: %v; Citadel was asked %d times", names, len(n.citadel.Calls())-asked)
	}
}

func TestDamagedTokensAreRemovedAndTheOthersUsed(t *testing.T) {
	n, log := newKeeping(t)
	good, bad := n.volume("p1", "payroll"), n.volume("p2", "web")
	n.publish(good, "token1")
	n.publish(bad, "token2")
	n.registry.Close()
	for name, content := range map[string]string{bad.Facts.UID + ".json": `{"token": "half-a-sec`, "other.json": `{}`, ".new": "half-a-sec", "of-someone": "half-a-sec"} {
		if err := os.WriteFile(filepath.Join(n.tokens, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(n.tokens, "tree.json/a"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.restart()
	subscribe(t, good).certificate()
	if names, _ := n.kept(); len(names) != 1 || names[0] != good.Facts.UID+".json" {
		t.Fatalf("kept: %v", names)
	}
	n.publish(bad, "token2") // kubelet's next round
	subscribe(t, bad).certificate()
	n.registry.Close()
	if strings.Contains(log.String(), "half-a") || strings.Count(log.String(), "cannot be read and is removed") != 5 {
		t.Fatalf("log: %s", log)
	}
}

func TestOnlyAPodsUIDBecomesAFileName(t *testing.T) {
	n, log := newKeeping(t)
	for i, uid := range []string{"../../escaped", "..", "a/b", "A", strings.Repeat("a", 64)} {
		v := n.volume(fmt.Sprintf("p%d", i), "payroll")
		v.Facts.UID = uid
		n.publish(v, "a-great-secret") // the pod is served all the same
	}
	if found := find(t, filepath.Join(n.tokens, "../.."), "a-great-secret"); len(found) > 0 {
		t.Fatalf("written: %v", found)
	}
	n.registry.Close()
	if strings.Count(log.String(), "will have to wait for a pod's token") != 5 || strings.Contains(log.String(), "a-great-secret") {
		t.Fatalf("log: %s", log)
	}
}
