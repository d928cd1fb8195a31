package files

import (
	"context"
	"crypto/tls"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// volume is the target of a CSI volume in kubelet's layout, and the emptyDir beside it, in memory.
func volume(t *testing.T) (target, dir string) {
	t.Helper()
	const memory = "/dev/shm"
	if os.Getuid() != 0 {
		t.Skip("giving files to another user needs root")
	}
	base, err := os.MkdirTemp(memory, "pods")
	if err != nil {
		t.Skipf("no tmpfs at %s: %v", memory, err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	target = filepath.Join(base, "uid/volumes/kubernetes.io~csi/bulwark/mount")
	dir = Spec{Volume: "certs"}.Dir(target)
	for _, d := range []string{target, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil { // as kubelet does
		t.Fatal(err)
	}
	return target, dir
}

var spec = Spec{Volume: "certs", Mode: 0o400, UID: 4242, GID: 4343}

func start(t *testing.T, n *identitytest.Node, target string, s Spec, p *identity.Identity) *Writer {
	t.Helper()
	w := New(target, s, p, n.Bundle, identitytest.Quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func TestFilesAreTheUsersAloneAndFitEachOther(t *testing.T) {
	target, dir := volume(t)
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	w := start(t, n, target, spec, p)
	n.Eventually("files", func() bool { return w.Ready() == nil })
	for name, mode := range map[string]fs.FileMode{certFile: 0o444, keyFile: 0o400, caFile: 0o444, bundleFile: 0o444} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != mode || sys.Uid != 4242 || sys.Gid != 4343 {
			t.Errorf("%s: mode %o, owner %d:%d", name, st.Mode().Perm(), sys.Uid, sys.Gid)
		}
		if link, err := os.Readlink(filepath.Join(dir, name)); err != nil || link != "..data/"+name {
			t.Errorf("%s points to %q, %v", name, link, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil || pair.Leaf.URIs[0].String() != p.ID.String() {
		t.Fatalf("%v", err)
	}
	document, err := os.ReadFile(filepath.Join(dir, bundleFile))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := svid.ParseDocument(spiffeid.RequireTrustDomainFromString("cluster.local"), document); err != nil || !b.HasX509Authority(n.CA.Cert) || len(b.JWTAuthorities()) != 1 {
		t.Fatalf("%v", err)
	}
	n.Eventually("the pod holds what was written", func() bool {
		all := p.Clients()
		return len(all) == 1 && all[0].Method == identity.ByFiles && all[0].Trusts && all[0].Sequence == 1
	})
}

func TestRenewalReplacesAllFilesInOneStep(t *testing.T) {
	target, dir := volume(t)
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	w := start(t, n, target, spec, p)
	n.Eventually("files", func() bool { return w.Ready() == nil })
	read := func() string {
		// A reader who resolves ..data once sees one state of things.
		// Its directory may be replaced and removed meanwhile, as with kubelet's volumes; then it resolves again.
		data, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
		if os.IsNotExist(err) {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(data, certFile), filepath.Join(data, keyFile))
		if os.IsNotExist(err) {
			return ""
		}
		if err != nil {
			t.Fatalf("certificate and key do not fit: %v", err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	for range 5 {
		before := read()
		p.Renew()
		n.Eventually("another certificate", func() bool { now := read(); return now != "" && now != before })
	}
	n.Eventually("nothing of earlier times is left", func() bool {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries) == 6 // four links, ..data and its directory
	})
}

func TestKeyIsNeverWrittenToADisk(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is in memory itself", dir)
	}
	if _, err := open(dir); err == nil || !strings.Contains(err.Error(), "medium: Memory") {
		t.Fatalf("a directory on a disk: %v", err)
	}
}

func TestWaitsForTheDirectoryAndTheSVID(t *testing.T) {
	target, dir := volume(t)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	w := start(t, n, target, spec, p)
	n.Eventually("a failure", func() bool { return w.state.Load() != nil })
	if err := w.Ready(); err == nil || !strings.Contains(err.Error(), ErrNotWritten.Error()) {
		t.Fatalf("%v", err)
	}
	if err := os.Mkdir(dir, 0o777); err != nil { // kubelet gets to it
		t.Fatal(err)
	}
	n.Eventually("files", func() bool { return w.Ready() == nil })
}

// TestPodCannotLeadTheAgentOutOfItsDirectory lays the traps that a pod can lay which may write to its emptyDir.
func TestPodCannotLeadTheAgentOutOfItsDirectory(t *testing.T) {
	victim := t.TempDir()
	precious := filepath.Join(victim, keyFile)
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, trap := range map[string]func(dir string) error{
		"..data leads out":           func(dir string) error { return os.Symlink(victim, filepath.Join(dir, dataLink)) },
		"the new link leads out":     func(dir string) error { return os.Symlink(victim, filepath.Join(dir, newLink)) },
		"the new link is a tree":     func(dir string) error { return os.MkdirAll(filepath.Join(dir, newLink, "a/b"), 0o755) },
		"a file leads out":           func(dir string) error { return os.Symlink(precious, filepath.Join(dir, keyFile)) },
		"a file is a directory":      func(dir string) error { return os.MkdirAll(filepath.Join(dir, keyFile, "x"), 0o755) },
		"an old directory leads out": func(dir string) error { return os.Symlink(victim, filepath.Join(dir, "..2020_01_01")) },
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := volume(t)
			if err := trap(dir); err != nil {
				t.Fatal(err)
			}
			root, err := open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			_, _ = replace(root, []file{{keyFile, []byte("key"), 0o400}}, 4242, 4343, time.Now()) // it may fail
			_ = empty(root, names)
			st, err := os.Stat(precious)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(precious)
			if entries, _ := os.ReadDir(victim); err != nil || string(b) != "precious" || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid == 4242 || len(entries) != 1 {
				t.Fatalf("the victim is now %q, mode %o, %v", b, st.Mode().Perm(), err)
			}
		})
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	target, dir := volume(t)
	root, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range 2 {
		if _, err := replace(root, contents, 4242, 4343, time.Unix(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	// An agent that died while it wrote.
	if err := os.Mkdir(filepath.Join(dir, "..2020_01_01"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "..2020_01_01", keyFile), []byte("key"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "of-the-pod"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(target, spec); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "of-the-pod" {
		t.Fatalf("%v, %v", entries, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := Remove(target, spec); err != nil {
		t.Fatalf("kubelet was faster: %v", err)
	}
}

func TestAttributes(t *testing.T) {
	for name, c := range map[string]struct {
		attributes string
		want       Spec
		says       string
	}{
		"none":              {"access=any", Spec{}, ""},
		"the least":         {"files=certs,uid=1000,gid=1000", Spec{"certs", 0o400, 1000, 1000}, ""},
		"a mode":            {"files=certs,uid=0,gid=5,fileMode=0440", Spec{"certs", 0o440, 0, 5}, ""},
		"no owner":          {"files=certs", Spec{}, "runAsUser"},
		"an owner by name":  {"files=certs,uid=root,gid=0", Spec{}, "by number"},
		"a negative owner":  {"files=certs,uid=-1,gid=0", Spec{}, "by number"},
		"for everyone":      {"files=certs,uid=0,gid=0,fileMode=0444", Spec{}, "0400 or 0440"},
		"a mode that isn't": {"files=certs,uid=0,gid=0,fileMode=rw", Spec{}, "0400 or 0440"},
		"a path":            {"files=../x,uid=0,gid=0", Spec{}, "emptyDir"},
		"as in a boolean":   {"files=True,uid=0,gid=0", Spec{}, "emptyDir"},
		"an owner of what?": {"uid=0", Spec{}, "without files"},
	} {
		attributes := map[string]string{}
		for _, a := range strings.Split(c.attributes, ",") {
			k, v, _ := strings.Cut(a, "=")
			attributes[k] = v
		}
		got, err := ParseSpec(attributes)
		if got != c.want || (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
