package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hold starts a process that is born in a network namespace of its own, which goes with it.
func hold(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// within runs a function on a thread in the network namespace of a process.
func within(t *testing.T, pid int, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromPid(pid)
		if err == nil {
			err = netns.Set(h)
			_ = h.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func TestNodesReachEachOtherInTheirFamilies(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, f := range []Families{IPv4, Dual} {
		fabric := hold(t)
		var nodes []Node
		for n := 1; n <= 2; n++ {
			nodes = append(nodes, Node{Name: "node" + strconv.Itoa(n), PID: hold(t), IPs: NodeIPs(f, n), Pods: PodRanges(f, n)})
		}
		if err := Connect(f, fabric, nodes); err != nil {
			t.Fatal(err)
		}
		if err := within(t, fabric, func() error {
			for name, value := range Sysctls(f, false) {
				if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := within(t, nodes[1].PID, func() error {
			l, err := net.Listen("tcp", ":9000")
			if err == nil {
				t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		dial := func(to netip.Addr) error {
			return within(t, nodes[0].PID, func() error {
				c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 9000).String(), 5*time.Second)
				if err == nil {
					_ = c.Close()
				}
				return err
			})
		}
		for _, ip := range nodes[1].IPs {
			if err := dial(ip); err != nil {
				t.Errorf("%s: node1 calls node2: %v", f, err)
			}
		}
		beyond := map[string]error{"192.0.2.1": unix.EHOSTUNREACH, "2001:db8::1": unix.EHOSTUNREACH}
		if f == IPv4 {
			beyond["2001:db8::1"] = unix.ENETUNREACH
		}
		for to, want := range beyond {
			if err := dial(netip.MustParseAddr(to)); !errors.Is(err, want) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%s: node1 calls %s: %v", f, to, err)
			}
		}
	}
}
