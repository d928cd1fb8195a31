package redirect

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// in runs f on a thread in a network namespace of its own, after the commands of `ip`, as a user who is nobody.
func in(t *testing.T, setup []string, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("setting up a network namespace needs the ip command")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("network namespace: %v", err)
			return
		}
		for _, args := range setup {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v: %s", args, err, out)
				return
			}
		}
		f()
	}()
	<-done
}

var (
	device = []string{"link set lo up", "link add pod0 type veth peer name wire0", "link set wire0 up", "link set pod0 up"}
	four   = []string{"addr add 10.9.9.9/24 dev pod0", "route add default dev pod0"}
	six    = []string{"-6 addr add fd09::9/64 dev pod0 nodad", "-6 route add default dev pod0"}
)

func TestProof(t *testing.T) {
	join := func(lists ...[]string) (all []string) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for name, c := range map[string]struct {
		setup []string
		rules bool
		says  string // empty: proven
	}{
		"IPv4":                 {join(device, four), true, ""},
		"IPv6":                 {join(device, six), true, ""},
		"both":                 {join(device, four, six), true, ""},
		"no rules":             {join(device, four), false, "has not redirected this pod's traffic"},
		"no rules, IPv6":       {join(device, six), false, "has not redirected this pod's traffic"},
		"rules, but no way":    {device, true, "no route"},
		"no rules, and no way": {device, false, "no route"},
	} {
		in(t, c.setup, func() {
			if c.rules {
				if err := redirect.Apply(redirect.Options{}); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
			err := ofThisThread(t)
			said := fmt.Sprint(err)
			if c.says == "" && err != nil || c.says != "" && (!strings.Contains(said, c.says) || !strings.Contains(said, "get daemonset bulwark-cni")) {
				t.Errorf("%s: %v, want %q", name, err, c.says)
			}
		})
	}
}

// ofThisThread proves as a user who is neither root nor the proxy.
func ofThisThread(t *testing.T) error {
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 1338, 0); e != 0 {
		return e
	}
	err := Prove(t.Context(), ProveSettings{})
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 0, 0); e != 0 {
		return e
	}
	return err
}
