// Package netns makes pairs of network namespaces for benchmarks, joined by one link and to nothing else: no interface,
// route or rule of the machine is touched.
package netns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const toolWithin = 10 * time.Second

// Namespace is a network namespace, by the path of its handle.
type Namespace struct{ Path string }

// OfProcess is the namespace that a process is in.
func OfProcess(pid int) Namespace { return Namespace{fmt.Sprintf("/proc/%d/ns/net", pid)} }

// Pair is two namespaces with an address each.
type Pair struct{ Client, Server Namespace }

// NewPair makes a pair. What is not in the link's network goes over the link as well, so that connections to services
// have a route until they are redirected.
func NewPair(ctx context.Context, name, clientIP, serverIP string) (*Pair, error) {
	client, server := name+"-client", name+"-server"
	for _, step := range []string{
		"netns add " + client,
		"netns add " + server,
		"link add eth0 netns " + client + " type veth peer name eth0 netns " + server,
		"-n " + client + " addr add " + clientIP + "/24 dev eth0",
		"-n " + server + " addr add " + serverIP + "/24 dev eth0",
		"-n " + client + " link set lo up",
		"-n " + server + " link set lo up",
		"-n " + client + " link set eth0 up",
		"-n " + server + " link set eth0 up",
		"-n " + client + " route add default via " + serverIP,
		"-n " + server + " route add default via " + clientIP,
	} {
		if err := run(ctx, "ip", strings.Fields(step)...); err != nil {
			return nil, errors.Join(err, remove(client, server))
		}
	}
	return &Pair{Namespace{"/run/netns/" + client}, Namespace{"/run/netns/" + server}}, nil
}

// Beside makes a third namespace for a pair, which a link joins to the server's, with addresses of a network of its own at both ends.
func (p *Pair) Beside(ctx context.Context, name, ip, serverIP string) (Namespace, error) {
	beside, server := name+"-beside", name+"-server"
	for _, step := range []string{
		"netns add " + beside,
		"link add eth0 netns " + beside + " type veth peer name eth1 netns " + server,
		"-n " + beside + " addr add " + ip + "/24 dev eth0",
		"-n " + server + " addr add " + serverIP + "/24 dev eth1",
		"-n " + beside + " link set lo up",
		"-n " + beside + " link set eth0 up",
		"-n " + server + " link set eth1 up",
	} {
		if err := run(ctx, "ip", strings.Fields(step)...); err != nil {
			return Namespace{}, err // Remove takes what there is
		}
	}
	return Namespace{"/run/netns/" + beside}, nil
}

// Remove removes a pair by its name, if it is there, and what is beside it.
func Remove(name string) error { return remove(name+"-client", name+"-server", name+"-beside") }

func remove(names ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), toolWithin)
	defer cancel()
	list, err := exec.CommandContext(ctx, "ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("listing network namespaces: %w", err)
	}
	there := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 0 {
			there[f[0]] = true
		}
	}
	var errs []error
	for _, n := range names {
		if there[n] {
			errs = append(errs, run(ctx, "ip", "netns", "del", n))
		}
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, toolWithin)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// Options say how a program runs in a namespace.
type Options struct {
	UID int // user and group; zero is root
	CPU int // the one processor it may use, or -1
}

// Command prepares a program that runs in the namespace; it ends with ctx, or with us, however we end. Its process is the program itself.
func (n Namespace) Command(ctx context.Context, o Options, program string, args ...string) *exec.Cmd {
	// setpriv comes last: the kernel forgets the signal of a parent's death when a process becomes another user.
	line := []string{"nsenter", "--net=" + n.Path, "setpriv", "--pdeathsig=KILL"}
	if o.UID != 0 {
		id := strconv.Itoa(o.UID)
		line = append(line, "--reuid="+id, "--regid="+id, "--clear-groups")
	}
	if o.CPU >= 0 {
		line = append([]string{"taskset", "--cpu-list", strconv.Itoa(o.CPU)}, line...)
	}
	line = append(append(line, "--", program), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a program in the namespace to its end.
func (n Namespace) Run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, toolWithin)
	defer cancel()
	if out, err := n.Command(ctx, Options{CPU: -1}, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}
