package envoytest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Netns is a network namespace, as a pod has one. It goes with the last process in it.
type Netns struct {
	handle *os.File
	// WithoutIPv6 has the Envoy in it run as on a kernel that has no IPv6.
	WithoutIPv6 bool
}

// NewNetns makes a network namespace with a loopback device, and skips the test where that cannot be done.
func NewNetns(t testing.TB) *Netns {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	for _, tool := range []string{"ip", "nsenter", "setpriv", "sysctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("a pod's network needs the command %s", tool)
		}
	}
	n, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.handle.Close() })
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

func newNetns() (*Netns, error) {
	type made struct {
		handle *os.File
		err    error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, fmt.Errorf("network namespace: %w", err)}
			return
		}
		handle, err := os.Open("/proc/thread-self/ns/net")
		done <- made{handle, err}
	}()
	m := <-done
	return &Netns{handle: m.handle}, m.err
}

func (n *Netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.handle.Fd()) }

// Link joins two namespaces by a pair of devices of that name. What neither has an address for goes to the other, so that connections to Services have a route
// until they are redirected.
func Link(t testing.TB, name string, a, b *Netns) {
	t.Helper()
	a.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", b.path())
	for _, n := range []*Netns{a, b} {
		n.Run(t, "ip", "link", "set", name, "up")
	}
}

// Address gives a device of the namespace an address, by which the rest of the world is reached, too.
func (n *Netns) Address(t testing.TB, device, address string) {
	t.Helper()
	n.Run(t, "ip", "addr", "add", address, "dev", device, "nodad")
	family := "-4"
	if strings.Contains(address, ":") {
		family = "-6"
	}
	n.Run(t, "ip", family, "route", "add", "default", "dev", device)
}

// Run runs a command in the namespace to its end.
func (n *Netns) Run(t testing.TB, line ...string) {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + n.path(), "--"}, line...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(line, " "), err, out)
	}
}

// asProxy is a command line that runs another in the namespace as the proxy's group, whose traffic is not redirected, and that ends with us.
func (n *Netns) asProxy(line []string) []string {
	if n.WithoutIPv6 {
		line = append([]string{"env", withoutIPv6 + "=1", os.Args[0]}, line...)
	}
	return append([]string{"nsenter", "--net=" + n.path(), "setpriv", fmt.Sprintf("--regid=%d", mesh.ProxyGID), "--clear-groups", "--pdeathsig=KILL", "--"}, line...)
}

// Do runs a function on a thread in the namespace. What it starts is not in it.
func (n *Netns) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Listen listens in the namespace.
func (n *Netns) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Dial connects from the namespace.
func (n *Netns) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// DialUnredirected connects from the namespace as somebody whose traffic goes around the proxy.
func (n *Netns) DialUnredirected(ctx context.Context, network, address string) (c net.Conn, err error) {
	return n.DialFrom(ctx, "", network, address)
}

// DialFrom does so from one of the namespace's addresses; an empty one is any.
func (n *Netns) DialFrom(ctx context.Context, own, network, address string) (c net.Conn, err error) {
	var dialer net.Dialer
	if own != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(own)}
	}
	err = n.Do(func() error {
		if _, _, e := unix.RawSyscall(unix.SYS_SETFSGID, mesh.ProxyGID, 0, 0); e != 0 { // of this thread alone
			return e
		}
		c, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
