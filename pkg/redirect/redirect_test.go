package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread in a network namespace of its own, with a loopback device and the addresses 10.9.9.9
// and fd09::9 as the pod's own.
func inNamespace(t *testing.T, f func()) {
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
		for _, args := range []string{
			"link set lo up", "link add pod0 type veth peer name wire0", "link set wire0 up", "link set pod0 up", "addr add 10.9.9.9/24 dev pod0", "-6 addr add fd09::9/64 dev pod0 nodad",
			"route add default dev pod0", "-6 route add default dev pod0",
		} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v: %s", args, err, out)
				return
			}
		}
		f()
	}()
	<-done
}

// listener accepts on a port and says which connections reached it.
func listen(t *testing.T, address string) {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "0.0.0.0:") { // which Go takes for both families
		network = "tcp4"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Error(err) // not Fatal: this is not the test's own goroutine
		return
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, port)
			c.Close()
		}
	}()
}

// reached connects, as the given user and from the given address, and returns the port that answered.
func reached(uid uint32, from, to string) string {
	family := unix.AF_INET
	target := netip.MustParseAddrPort(to)
	if target.Addr().Is6() {
		family = unix.AF_INET6
	}
	// Only this thread changes its user: the kernel looks at the one that makes the socket.
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), 0); e != 0 {
		return e.Error()
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 0, 0); e != 0 {
		return e.Error()
	}
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	if from != "" {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(netip.MustParseAddr(from), 0))); err != nil {
			return err.Error()
		}
	}
	if err := unix.Connect(fd, sockaddr(target)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err.Error()
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 2000); err != nil || n == 0 {
		return "no answer"
	}
	b := make([]byte, 16)
	n, err := unix.Read(fd, b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

const (
	application = 1000
	proxy       = 1337
)

func TestTrafficGoesWhereItShould(t *testing.T) {
	inNamespace(t, func() {
		for range 2 { // a restarted init container applies them again
			if err := Apply(Options{ExcludeOutboundPorts: []uint16{9200}, ExcludeOutbound: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("192.0.2.0/24")}}); err != nil {
				t.Error(err)
				return
			}
		}
		for _, p := range []string{"15001", "15006", "8080", "9200", "15090"} {
			listen(t, ":"+p)
		}
		for name, c := range map[string]struct {
			uid      uint32
			from, to string
			want     string
		}{
			"application to the world":                         {application, "", "93.184.216.34:443", "15001"},
			"application to the world, IPv6":                   {application, "", "[2001:db8::1]:443", "15001"},
			"root's process to the world":                      {0, "", "93.184.216.34:443", "15001"},
			"application to a port that is the proxy's name":   {application, "", "93.184.216.34:15001", "15001"},
			"between containers over localhost":                {application, "", "127.0.0.1:8080", "8080"},
			"between containers over localhost, IPv6":          {application, "", "[::1]:8080", "8080"},
			"proxy to its application":                         {proxy, "127.0.0.6", "10.9.9.9:8080", "8080"},
			"proxy to its application over localhost":          {proxy, "", "127.0.0.1:8080", "8080"},
			"proxy to its application, IPv6":                   {proxy, "::6", "[fd09::9]:8080", "8080"},
			"proxy to its application over localhost, IPv6":    {proxy, "", "[::1]:8080", "8080"},
			"application from the proxy's address, IPv6":       {application, "::6", "[2001:db8::1]:443", "15001"},
			"own service: proxy to the pod itself":             {proxy, "", "10.9.9.9:8080", "15006"},
			"own service: proxy to the pod itself, IPv6":       {proxy, "", "[fd09::9]:8080", "15006"},
			"excluded port":                                    {application, "", "10.9.9.9:9200", "9200"},
			"proof on an excluded port of an excluded network": {application, "", "192.0.2.1:9200", "15001"},
			"proof of IPv6":                                    {application, "", "[2001:db8::1]:9200", "15001"},
		} {
			if got := reached(c.uid, c.from, c.to); got != c.want {
				t.Errorf("%s: %s:%s reached %q, want %q", name, c.from, c.to, got, c.want)
			}
		}
		// The proxy's own connections leave as they are: nobody is there to answer.
		if got := reached(proxy, "", "93.184.216.34:443"); got == "15001" || got == "15006" {
			t.Errorf("the proxy's own connection came back to %s", got)
		}
		if got := reached(application, "", "10.77.1.1:443"); got == "15001" {
			t.Errorf("an excluded network was redirected")
		}
		if there, err := Applied(); err != nil || !there {
			t.Errorf("the rules are there: %v, %v", there, err)
		}
		if err := Remove(); err != nil {
			t.Error(err)
		}
		if there, err := Applied(); err != nil || there {
			t.Errorf("the rules are there after removal: %v, %v", there, err)
		}
		if got := reached(application, "", "10.9.9.9:8080"); got != "8080" {
			t.Errorf("after removal: reached %q", got)
		}
		if err := Remove(); err != nil {
			t.Errorf("removing twice: %v", err)
		}
	})
}

// A peer in another namespace stands for the network.
// Where something is included, nothing else is redirected; but a port that is included is, whatever its address.
func TestOnlyWhatIsIncludedIsRedirected(t *testing.T) {
	inNamespace(t, func() {
		if err := Apply(Options{IncludeOutbound: []netip.Prefix{netip.MustParsePrefix("10.9.10.0/24")}, IncludeOutboundPorts: []uint16{9300}, ExcludeOutboundPorts: []uint16{9200},
			IncludeInboundPorts: []uint16{}}); err != nil {
			t.Error(err)
			return
		}
		for _, p := range []string{"15001", "15006", "8080"} {
			listen(t, ":"+p)
		}
		for name, c := range map[string]struct {
			uid  uint32
			to   string
			want string
		}{
			"a network that is included":               {application, "10.9.10.7:443", "15001"},
			"an excluded port of that network":         {application, "10.9.10.7:9200", ""},
			"another network":                          {application, "93.184.216.34:443", ""},
			"a port that is included, anywhere":        {application, "93.184.216.34:9300", "15001"},
			"an address of proof":                      {application, "192.0.2.1:443", "15001"},
			"between containers over localhost":        {application, "127.0.0.1:8080", "8080"},
			"the proxy's own, to a network of the two": {proxy, "10.9.10.7:443", ""},
		} {
			if got := reached(c.uid, "", c.to); got != c.want && !(c.want == "" && (got == "no answer" || strings.Contains(got, "unreachable") || strings.Contains(got, "no route"))) {
				t.Errorf("%s: %s reached %q, want %q", name, c.to, got, c.want)
			}
		}
	})
}

func TestInboundTrafficGoesToTheProxy(t *testing.T) {
	inNamespace(t, func() {
		run := func(args string) {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v: %s", args, err, out)
			}
		}
		peer := exec.Command("unshare", "-n", "sleep", "60")
		if err := peer.Start(); err != nil {
			t.Skip("the unshare command is missing")
		}
		defer func() { _ = peer.Process.Kill(); _ = peer.Wait() }()
		pid := fmt.Sprint(peer.Process.Pid)
		own, _ := os.Readlink("/proc/thread-self/ns/net")
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if theirs, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil && theirs != own {
				break
			}
		}
		run("link add host0 type veth peer name eth0 netns " + pid)
		run("addr add 10.8.8.1/24 dev host0")
		run("-6 addr add fd08::1/64 dev host0 nodad")
		run("link set host0 up")
		inside := func(args ...string) string {
			out, _ := exec.Command("nsenter", append([]string{"-t", pid, "-n"}, args...)...).CombinedOutput()
			return string(out)
		}
		inside("ip", "addr", "add", "10.8.8.2/24", "dev", "eth0")
		inside("ip", "-6", "addr", "add", "fd08::2/64", "dev", "eth0", "nodad")
		inside("ip", "link", "set", "eth0", "up")
		if err := Apply(Options{ExcludeInboundPorts: []uint16{9200}}); err != nil {
			t.Error(err)
			return
		}
		for _, p := range []string{"15006", "8080", "9200", "15021", "15090"} {
			listen(t, ":"+p)
		}
		for to, want := range map[string]string{
			"10.8.8.1/8080": "15006", "fd08::1/8080": "15006", "10.8.8.1/22": "15006",
			"10.8.8.1/9200": "9200", "10.8.8.1/15021": "15021", "10.8.8.1/15090": "15090", "fd08::1/15021": "15021",
		} {
			got := inside("timeout", "5", "bash", "-c", "cat < /dev/tcp/"+to)
			if got != want {
				t.Errorf("%s reached %q, want %q", to, got, want)
			}
		}
		if err := Apply(Options{IncludeInboundPorts: []uint16{8080}, ExcludeInboundPorts: []uint16{8080}}); err != nil {
			t.Error(err)
			return
		}
		for to, want := range map[string]string{"10.8.8.1/8080": "15006", "10.8.8.1/9200": "9200", "10.8.8.1/15021": "15021"} {
			if got := inside("timeout", "5", "bash", "-c", "cat < /dev/tcp/"+to); got != want {
				t.Errorf("where only 8080 is included, %s reached %q, want %q", to, got, want)
			}
		}
	})
}

// Where a pod has no IPv6, or it is switched off, all is done that IPv4 needs; where it has, a proxy of IPv4 alone lets nothing past it.
func TestAPodWithoutIPv6IsRedirected(t *testing.T) {
	run := func(program string, args ...string) {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v: %s", program, args, err, out)
		}
	}
	for name, without := range map[string]func(){
		"switched off":                    func() { run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1") },
		"switched off for loopback":       func() { run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1") },
		"no address that others can call": func() { run("ip", "-6", "addr", "del", "fd09::9/64", "dev", "pod0") },
	} {
		inNamespace(t, func() {
			without()
			if err := Apply(Options{}); err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			if out, err := exec.Command("ip", "-6", "addr", "show", "dev", "lo").CombinedOutput(); err != nil || strings.Contains(string(out), "inet6 ::6/") {
				t.Errorf("%s: the loopback device has %s, %v", name, out, err)
			}
			listen(t, "0.0.0.0:15001")
			if got := reached(application, "", "93.184.216.34:443"); got != "15001" {
				t.Errorf("%s: reached %q", name, got)
			}
			if err := Remove(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	inNamespace(t, func() {
		if err := Apply(Options{}); err != nil {
			t.Error(err)
			return
		}
		listen(t, "0.0.0.0:15001")
		listen(t, "0.0.0.0:15006")
		listen(t, "[::]:8080")
		for _, to := range []string{"[2001:db8::1]:443", "[2001:db8::1]:8080"} {
			if got := reached(application, "", to); !strings.Contains(got, "refused") {
				t.Errorf("%s, of which the proxy has no listener, reached %q", to, got)
			}
		}
	})
}

func TestOptionsAreReadAsTheyWereWrittenAndNothingElseIs(t *testing.T) {
	for _, o := range []Options{{}, {
		ExcludeInboundPorts: []uint16{22}, ExcludeOutboundPorts: []uint16{9200},
		ExcludeOutbound: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	}} {
		if got, err := Parse(o.String()); err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%s: %+v, %v", o, got, err)
		}
	}
	for _, bad := range []string{
		``, `[]`, `{} {}`, `{"excludeInbound":[1]}`, `{"excludeInboundPorts":["http"]}`, `{"excludeOutboundPorts":[70000]}`, `{"excludeInboundPorts":[0]}`,
		`{"excludeOutboundCIDRs":["10.0.0.0"]}`, `{"excludeOutboundCIDRs":[""]}`, `{"excludeOutboundCIDRs":["::ffff:10.0.0.0/104"]}`,
		`{"excludeInboundPorts":[` + strings.Repeat("1,", maxEntries) + `1]}`, `{}` + strings.Repeat(" ", maxText),
	} {
		if o, err := Parse(bad); err == nil {
			t.Errorf("%.60s is read as %+v", bad, o)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"excludeInboundPorts":[22],"excludeOutboundCIDRs":["10.0.0.0/8"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		o, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(o.String()); err != nil || again.String() != o.String() {
			t.Errorf("%q is read as %s, and that as %s, %v", text, o, again, err)
		}
	})
}
